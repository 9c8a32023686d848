//! How the table is laid out in bytes: shared by build.rs, which writes it, and table.rs, which reads it.
//!
//! Little endian, no padding: header, types sorted by name, fields (those of a type together, sorted by name),
//! shapes, string bytes. A string is its offset in the string bytes (u32) and its length (u16).

/// Counts of types, fields and shapes (u16 each) and of string bytes (u32).
pub const HEADER: usize = 10;

/// name, description: strings; leaf: u8 (the tag of a type that is no struct, else [`TYPE`]); first field, number of
/// fields: u16 each.
pub const TYPE_SIZE: usize = 6 + 6 + 1 + 2 + 2;
pub const TYPE_DESCRIPTION: usize = 6;
pub const TYPE_LEAF: usize = 12;
pub const TYPE_FIRST: usize = 13;
pub const TYPE_COUNT: usize = 15;

/// Strings: name, description, merge key, Go type, list type, enum, embedded struct; shape: u16; flags: u8.
pub const FIELD_SIZE: usize = 7 * 6 + 2 + 1;
pub const FIELD_DESCRIPTION: usize = 6;
pub const FIELD_MERGE_KEY: usize = 12;
pub const FIELD_GO: usize = 18;
pub const FIELD_LIST: usize = 24;
pub const FIELD_ENUM: usize = 30;
pub const FIELD_VIA: usize = 36;
pub const FIELD_SHAPE: usize = 42;
pub const FIELD_FLAGS: usize = 44;

/// Flags of a field.
pub const REQUIRED: u8 = 1;
pub const KEEP: u8 = 2;
pub const MERGE: u8 = 4;
pub const RETAIN_KEYS: u8 = 8;
pub const REPLACE: u8 = 16;

/// tag: u8; argument: u16 (the shape of the elements, or the type).
pub const SHAPE_SIZE: usize = 3;

/// Tags of shapes.
pub const STRING: u8 = 0;
pub const BOOL: u8 = 1;
pub const INT32: u8 = 2;
pub const INT64: u8 = 3;
pub const NUMBER: u8 = 4;
pub const BYTES: u8 = 5;
pub const LIST: u8 = 6;
pub const MAP: u8 = 7;
pub const TYPE: u8 = 8;
pub const QUANTITY: u8 = 9;
pub const TIME: u8 = 10;
pub const MICRO_TIME: u8 = 11;
pub const INT_OR_STRING: u8 = 12;
pub const FREE: u8 = 13;
