//! The table: reading types and fields in place, out of static bytes.

use crate::layout;

static TABLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/table.bin"));

/// All types. A handle on static bytes: getting and keeping it costs nothing.
#[derive(Debug)]
pub struct Schema {
    types: &'static [u8],
    fields: &'static [u8],
    shapes: &'static [u8],
    strings: &'static str,
}

/// What a field or an element holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    String,
    Bool,
    Int32,
    Int64,
    /// A floating point number.
    Number,
    /// A string or an int32 (`intstr.IntOrString`).
    IntOrString,
    /// `resource.Quantity`.
    Quantity,
    /// `metav1.Time`: RFC 3339, whole seconds.
    Time,
    /// `metav1.MicroTime`: RFC 3339 with six decimals.
    MicroTime,
    /// base64 in a string.
    Bytes,
    /// Any JSON, kept as it is (`runtime.RawExtension`, `metav1.FieldsV1`).
    Free,
    /// An object with fields: its type.
    Type(TypeId),
    /// A list; ask [`Schema::element`] for what it holds.
    List(ShapeId),
    /// A map from strings; ask [`Schema::element`].
    Map(ShapeId),
}

/// A type of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TypeId(pub(crate) u16);

/// A shape of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShapeId(pub(crate) u16);

/// One field of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: &'static str,
    pub description: &'static str,
    pub shape: Shape,
    /// OpenAPI's `required`. (The API's own validation decides what is required in truth.)
    pub required: bool,
    /// Strategic merge merges this list instead of replacing it: by `merge_key` if it holds objects.
    pub merges: bool,
    /// "" for lists of scalars and lists that do not merge.
    pub merge_key: &'static str,
    /// `atomic`, `set` or `map:KEY,KEY` for lists, `map=atomic` or `map=granular` for maps and objects; "" if unsaid.
    pub list_type: &'static str,
    /// The values of an enumeration, separated by commas; "" if it is none.
    pub values: &'static str,
    pub(crate) shape_id: ShapeId,
    /// Its Go type, where that does not follow from the shape.
    pub(crate) go: &'static str,
    /// The struct embedded in its type that has it in Go.
    pub(crate) via: &'static str,
    /// `layout::KEEP` and the like.
    pub(crate) flags: u8,
}

impl Schema {
    /// The one schema.
    pub fn get() -> &'static Schema {
        static SCHEMA: Schema = Schema::read(TABLE);
        &SCHEMA
    }

    /// Runs while compiling: a table that does not fit its header is a build error.
    const fn read(table: &'static [u8]) -> Schema {
        let (types, rest) = table.split_at(layout::HEADER).1.split_at(count(table, 0) * layout::TYPE_SIZE);
        let (fields, rest) = rest.split_at(count(table, 2) * layout::FIELD_SIZE);
        let (shapes, strings) = rest.split_at(count(table, 4) * layout::SHAPE_SIZE);
        assert!(strings.len() == count(table, 6) | count(table, 8) << 16);
        match std::str::from_utf8(strings) {
            Ok(strings) => Schema { types, fields, shapes, strings },
            Err(_) => panic!("the strings of the table are UTF-8"),
        }
    }

    /// Whether `name` (`io.k8s.api.apps.v1.StatefulSet`) is in the table.
    pub fn has_type(&self, name: &str) -> bool {
        self.find_type(name).is_some()
    }

    /// The type of this name.
    pub fn find_type(&self, name: &str) -> Option<TypeId> {
        let found = search(self.number_of_types(), |i| self.type_name(TypeId(i)).cmp(name))?;
        Some(TypeId(found))
    }

    /// The fields of a type in order of their names; None if there is no such type.
    pub fn fields(&self, type_name: &str) -> Option<Vec<Field>> {
        Some(self.fields_of(self.find_type(type_name)?).collect())
    }

    /// The fields of a type in order of their names.
    pub fn fields_of(&self, id: TypeId) -> impl Iterator<Item = Field> + '_ {
        let (first, count) = self.field_range(id);
        (first..first + count).map(|i| self.field_at(i))
    }

    /// The field `name` of a type.
    pub fn field(&self, id: TypeId, name: &str) -> Option<Field> {
        let (first, count) = self.field_range(id);
        let at = search(count, |i| self.string(self.fields, self.field_offset(first + i)).cmp(name))?;
        Some(self.field_at(first + at))
    }

    /// What a list or map of this shape holds.
    pub fn element(&self, id: ShapeId) -> Shape {
        let (tag, argument) = self.raw_shape(id);
        match tag {
            layout::STRING => Shape::String,
            layout::BOOL => Shape::Bool,
            layout::INT32 => Shape::Int32,
            layout::INT64 => Shape::Int64,
            layout::NUMBER => Shape::Number,
            layout::BYTES => Shape::Bytes,
            layout::LIST => Shape::List(ShapeId(argument)),
            layout::MAP => Shape::Map(ShapeId(argument)),
            layout::TYPE => Shape::Type(TypeId(argument)),
            layout::QUANTITY => Shape::Quantity,
            layout::TIME => Shape::Time,
            layout::MICRO_TIME => Shape::MicroTime,
            layout::INT_OR_STRING => Shape::IntOrString,
            layout::FREE..=u8::MAX => Shape::Free,
        }
    }

    /// The name of a type: `io.k8s.api.apps.v1.StatefulSet`.
    pub fn type_name(&self, id: TypeId) -> &'static str {
        self.string(self.types, usize::from(id.0) * layout::TYPE_SIZE)
    }

    /// What Kubernetes' documentation says about a type.
    pub fn description(&self, id: TypeId) -> &'static str {
        self.string(self.types, usize::from(id.0) * layout::TYPE_SIZE + layout::TYPE_DESCRIPTION)
    }

    /// All types, in order of their names.
    pub fn types(&self) -> impl Iterator<Item = TypeId> + '_ {
        (0..self.number_of_types()).map(TypeId)
    }

    /// The tag of a type that is no struct (Quantity and the like), else [`layout::TYPE`].
    pub(crate) fn leaf(&self, id: TypeId) -> u8 {
        self.types[usize::from(id.0) * layout::TYPE_SIZE + layout::TYPE_LEAF]
    }

    /// Tag and argument; a shape that stands for a named type (also Quantity and the like) has it as its argument.
    pub(crate) fn raw_shape(&self, id: ShapeId) -> (u8, u16) {
        let at = usize::from(id.0) * layout::SHAPE_SIZE;
        (self.shapes[at], u16_at(self.shapes, at + 1))
    }

    fn number_of_types(&self) -> u16 {
        (self.types.len() / layout::TYPE_SIZE) as u16
    }

    fn field_range(&self, id: TypeId) -> (u16, u16) {
        let at = usize::from(id.0) * layout::TYPE_SIZE;
        (u16_at(self.types, at + layout::TYPE_FIRST), u16_at(self.types, at + layout::TYPE_COUNT))
    }

    fn field_offset(&self, index: u16) -> usize {
        usize::from(index) * layout::FIELD_SIZE
    }

    fn field_at(&self, index: u16) -> Field {
        let at = self.field_offset(index);
        let text = |offset| self.string(self.fields, at + offset);
        let flags = self.fields[at + layout::FIELD_FLAGS];
        let shape_id = ShapeId(u16_at(self.fields, at + layout::FIELD_SHAPE));
        Field {
            name: text(0),
            description: text(layout::FIELD_DESCRIPTION),
            shape: self.element(shape_id),
            required: flags & layout::REQUIRED != 0,
            merges: flags & layout::MERGE != 0,
            merge_key: text(layout::FIELD_MERGE_KEY),
            list_type: text(layout::FIELD_LIST),
            values: text(layout::FIELD_ENUM),
            shape_id,
            go: text(layout::FIELD_GO),
            via: text(layout::FIELD_VIA),
            flags,
        }
    }

    fn string(&self, records: &'static [u8], at: usize) -> &'static str {
        let start = usize::from(u16_at(records, at)) | usize::from(u16_at(records, at + 2)) << 16;
        &self.strings[start..start + usize::from(u16_at(records, at + 4))]
    }
}

/// A number of the header.
const fn count(table: &[u8], at: usize) -> usize {
    u16_at(table, at) as usize
}

const fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Binary search among `count` records.
fn search(count: u16, compare: impl Fn(u16) -> std::cmp::Ordering) -> Option<u16> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        match compare(middle) {
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
            std::cmp::Ordering::Equal => return Some(middle),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(type_name: &str, name: &str) -> Field {
        let schema = Schema::get();
        schema.field(schema.find_type(type_name).unwrap(), name).unwrap()
    }

    #[test]
    fn every_type_and_field_is_found_by_its_name() {
        let schema = Schema::get();
        let mut fields = 0;
        for id in schema.types() {
            assert_eq!(schema.find_type(schema.type_name(id)), Some(id));
            for field in schema.fields_of(id) {
                assert_eq!(schema.field(id, field.name), Some(field));
                fields += 1;
            }
        }
        assert!(fields > 1000, "{fields}");
        assert!(!schema.has_type("io.k8s.api.apps.v1.Deployment"));
        assert!(!schema.has_type(""));
    }

    #[test]
    fn a_stateful_set_reaches_down_to_its_probes() {
        let schema = Schema::get();
        let mut id = schema.find_type("io.k8s.api.apps.v1.StatefulSet").unwrap();
        for name in ["spec", "template", "spec", "containers", "readinessProbe"] {
            id = match schema.field(id, name).unwrap().shape {
                Shape::Type(id) => id,
                Shape::List(element) => match schema.element(element) {
                    Shape::Type(id) => id,
                    other => panic!("{name}: {other:?}"),
                },
                other => panic!("{name}: {other:?}"),
            };
        }
        assert_eq!(schema.field(id, "periodSeconds").unwrap().shape, Shape::Int32);
    }

    #[test]
    fn merge_keys_and_list_types_are_those_of_kubernetes() {
        let ports = field("io.k8s.api.core.v1.Container", "ports");
        assert_eq!((ports.merge_key, ports.list_type), ("containerPort", "map:containerPort,protocol"));
        let tolerations = field("io.k8s.api.core.v1.PodSpec", "tolerations");
        assert_eq!((tolerations.merges, tolerations.list_type), (false, "atomic"));
        let finalizers = field("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "finalizers");
        assert_eq!((finalizers.merges, finalizers.merge_key), (true, ""));
        assert!(field("io.k8s.api.apps.v1.StatefulSetSpec", "selector").required);
        assert!(!field("io.k8s.api.apps.v1.StatefulSet", "metadata").required);
    }
}
