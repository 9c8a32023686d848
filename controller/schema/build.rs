//! Makes the schema table: the types of `k8s-openapi` that the kinds below reach, joined with tags.txt.

#[allow(dead_code)]
#[path = "src/layout.rs"]
mod layout;

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::{apps, autoscaling, coordination, core, discovery, policy, rbac, storage};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Value, json};

const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=tags.txt");
    println!("cargo::rerun-if-changed=src/layout.rs");
    let tags = std::fs::read_to_string("tags.txt").expect("tags.txt is beside build.rs");
    let table = Table::new(definitions(), parse_tags(&tags)).write();
    // FNV-1a: the documents made from the table change when it does.
    let hash = table
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    println!("cargo::rustc-env=TABLE_HASH={hash:016x}");
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    std::fs::write(format!("{out}/table.bin"), table).expect("OUT_DIR is writable");
}

/// Every definition reached from what is served, by name.
fn definitions() -> BTreeMap<String, Value> {
    let mut generator = SchemaGenerator::default();
    let mut lists = Vec::new();
    macro_rules! kinds {
        ($($kind:ty),* $(,)?) => { $(
            generator.subschema_for::<$kind>();
            lists.push(<$kind as JsonSchema>::schema_name().into_owned());
        )* };
    }
    kinds!(
        core::v1::Namespace,
        core::v1::Node,
        core::v1::Pod,
        core::v1::Service,
        core::v1::Endpoints,
        core::v1::PersistentVolume,
        core::v1::PersistentVolumeClaim,
        core::v1::ConfigMap,
        core::v1::Secret,
        core::v1::ServiceAccount,
        core::v1::Event,
        apps::v1::StatefulSet,
        apps::v1::ControllerRevision,
        discovery::v1::EndpointSlice,
        storage::v1::StorageClass,
        rbac::v1::Role,
        rbac::v1::ClusterRole,
        rbac::v1::RoleBinding,
        rbac::v1::ClusterRoleBinding,
        coordination::v1::Lease,
        policy::v1::PodDisruptionBudget,
    );
    generator.subschema_for::<core::v1::Binding>();
    generator.subschema_for::<policy::v1::Eviction>();
    generator.subschema_for::<autoscaling::v1::Scale>();
    generator.subschema_for::<meta::DeleteOptions>();
    generator.subschema_for::<meta::ListMeta>();
    generator.subschema_for::<meta::Patch>();
    generator.subschema_for::<meta::Status>();
    generator.subschema_for::<meta::WatchEvent<k8s_openapi::apimachinery::pkg::runtime::RawExtension>>();

    let mut all: BTreeMap<String, Value> = generator.take_definitions(true).into_iter().collect();
    for item in lists {
        all.insert(format!("{item}List"), list_of(&all[&item], &item));
    }
    all
}

/// The list kind of `item`, which `k8s-openapi` has only as a generic type.
fn list_of(item: &Value, name: &str) -> Value {
    let short = name.rsplit('.').next().unwrap_or(name);
    let of_item = |field: &str| item["properties"][field].clone();
    json!({
        "description": format!("{short}List is a list of objects of kind {short}."),
        "type": "object",
        "properties": {
            "apiVersion": of_item("apiVersion"),
            "kind": of_item("kind"),
            "metadata": {
                "$ref": LIST_META,
                "description": "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds",
            },
            "items": {
                "type": "array",
                "items": {"$ref": name},
                "description": format!("The objects of kind {short}."),
            },
        },
        "required": ["items"],
    })
}

/// What tags.txt says about one field.
#[derive(Default)]
struct Tag {
    flags: u8,
    merge_key: String,
    list: String,
    go: String,
    values: String,
    via: String,
}

fn parse_tags(text: &str) -> BTreeMap<(String, String), Tag> {
    let mut tags = BTreeMap::new();
    let mut owner = "";
    for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if !line.starts_with(' ') {
            owner = line;
            continue;
        }
        let mut words = line.split_whitespace();
        let field = words.next().unwrap_or_default();
        let mut tag = Tag::default();
        for word in words {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match key {
                "keep" => tag.flags |= layout::KEEP,
                "merge" => {
                    tag.flags |= layout::MERGE;
                    tag.merge_key = value.to_owned();
                }
                "retainKeys" => tag.flags |= layout::RETAIN_KEYS,
                "replace" => tag.flags |= layout::REPLACE,
                "list" => tag.list = value.to_owned(),
                "map" => tag.list = word.to_owned(),
                "go" => tag.go = value.to_owned(),
                "enum" => tag.values = value.to_owned(),
                "via" => tag.via = value.to_owned(),
                _ => panic!("tags.txt: {owner}.{field}: {word:?} is no tag"),
            }
        }
        tags.insert((owner.to_owned(), field.to_owned()), tag);
    }
    tags
}

/// The table being made.
struct Table {
    definitions: BTreeMap<String, Value>,
    tags: BTreeMap<(String, String), Tag>,
    /// Shapes so far: (tag, argument), each once.
    shapes: Vec<(u8, u16)>,
    strings: Vec<u8>,
    known: HashMap<String, u32>,
}

impl Table {
    fn new(definitions: BTreeMap<String, Value>, tags: BTreeMap<(String, String), Tag>) -> Table {
        Table { definitions, tags, shapes: Vec::new(), strings: Vec::new(), known: HashMap::new() }
    }

    fn write(mut self) -> Vec<u8> {
        let mut types = Vec::new();
        let mut fields = Vec::new();
        let mut number_of_fields = 0u16;
        let definitions: Vec<(String, Value)> = self.definitions.clone().into_iter().collect();
        for (name, schema) in &definitions {
            let properties = schema["properties"].as_object().cloned().unwrap_or_default();
            self.string(name, &mut types);
            self.string(schema["description"].as_str().unwrap_or_default(), &mut types);
            types.push(leaf(name));
            types.extend(number_of_fields.to_le_bytes());
            let count = u16::try_from(properties.len()).expect("few fields");
            types.extend(count.to_le_bytes());
            number_of_fields += count;
            for (field, property) in &properties {
                self.field(name, field, schema, property, &mut fields);
            }
        }
        assert!(self.tags.is_empty(), "tags.txt names fields that do not exist: {:?}", self.tags.keys());
        let mut out = Vec::new();
        for count in [definitions.len(), usize::from(number_of_fields), self.shapes.len()] {
            out.extend(u16::try_from(count).expect("fits").to_le_bytes());
        }
        out.extend(u32::try_from(self.strings.len()).expect("fits").to_le_bytes());
        assert_eq!(out.len(), layout::HEADER);
        out.extend(types);
        out.extend(fields);
        for (tag, argument) in &self.shapes {
            out.push(*tag);
            out.extend(argument.to_le_bytes());
        }
        out.extend(&self.strings);
        out
    }

    fn field(&mut self, owner: &str, name: &str, schema: &Value, property: &Value, out: &mut Vec<u8>) {
        let tag = self.tags.remove(&(owner.to_owned(), name.to_owned())).unwrap_or_default();
        let start = out.len();
        self.string(name, out);
        self.string(property["description"].as_str().unwrap_or_default(), out);
        self.string(&tag.merge_key, out);
        self.string(&tag.go, out);
        self.string(&tag.list, out);
        self.string(&tag.values, out);
        self.string(&tag.via, out);
        let shape = self.shape(owner, property);
        out.extend(shape.to_le_bytes());
        let mut flags = tag.flags;
        // k8s-openapi makes the metadata of a kind required, which the API does not.
        let is_kind = !schema["properties"]["kind"].is_null() && name == "metadata";
        if !is_kind && schema["required"].as_array().is_some_and(|r| r.iter().any(|f| f == name)) {
            flags |= layout::REQUIRED;
        }
        out.push(flags);
        assert_eq!(out.len() - start, layout::FIELD_SIZE);
    }

    fn shape(&mut self, owner: &str, schema: &Value) -> u16 {
        let shape = if let Some(reference) = schema["$ref"].as_str() {
            let name = reference.rsplit('/').next().unwrap_or(reference);
            let id = (0u16..)
                .zip(self.definitions.keys())
                .find_map(|(id, known)| (known == name).then_some(id))
                .unwrap_or_else(|| panic!("{owner} refers to {name}, which is unknown"));
            (leaf(name), id)
        } else {
            match (schema["type"].as_str(), schema["format"].as_str()) {
                (Some("string"), None) => (layout::STRING, 0),
                (Some("string"), Some("byte")) => (layout::BYTES, 0),
                (Some("boolean"), None) => (layout::BOOL, 0),
                (Some("integer"), Some("int32")) => (layout::INT32, 0),
                (Some("integer"), Some("int64")) => (layout::INT64, 0),
                (Some("number"), _) => (layout::NUMBER, 0),
                (Some("array"), None) => (layout::LIST, self.shape(owner, &schema["items"])),
                (Some("object"), None) if schema["additionalProperties"].is_object() => {
                    (layout::MAP, self.shape(owner, &schema["additionalProperties"]))
                }
                _ => panic!("{owner}: a schema this table cannot hold: {schema}"),
            }
        };
        let at = self.shapes.iter().position(|s| *s == shape).unwrap_or_else(|| {
            self.shapes.push(shape);
            self.shapes.len() - 1
        });
        u16::try_from(at).expect("few shapes")
    }

    /// Writes where `text` is among the strings, adding it if it is new.
    fn string(&mut self, text: &str, out: &mut Vec<u8>) {
        let strings = &mut self.strings;
        let at = *self.known.entry(text.to_owned()).or_insert_with(|| {
            let at = u32::try_from(strings.len()).expect("fits");
            strings.extend(text.as_bytes());
            at
        });
        out.extend(at.to_le_bytes());
        out.extend(u16::try_from(text.len()).expect("no text is that long").to_le_bytes());
    }
}

/// The shape of a type that is no struct; [`layout::TYPE`] for one that is.
fn leaf(name: &str) -> u8 {
    match name {
        "io.k8s.apimachinery.pkg.api.resource.Quantity" => layout::QUANTITY,
        "io.k8s.apimachinery.pkg.apis.meta.v1.Time" => layout::TIME,
        "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime" => layout::MICRO_TIME,
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => layout::INT_OR_STRING,
        "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1" | "io.k8s.apimachinery.pkg.runtime.RawExtension" => {
            layout::FREE
        }
        _ => layout::TYPE,
    }
}
