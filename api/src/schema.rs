//! The schema table: every type that a stored object is made of, with the flags that drive decoding, defaults and patches.
//!
//! Decides nothing by itself: it is data, parsed once from the files in `api/schema` that are compiled in.
//! It must not know single kinds; those are rows in [`crate::kinds`].

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::Value;

/// Shape of one value.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    String,
    Int,
    Number,
    Bool,
    /// Base64 in JSON.
    Bytes,
    /// RFC 3339 with whole seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    Quantity,
    IntOrString,
    /// Free-form JSON.
    Any,
    List(Box<Shape>),
    Map(Box<Shape>),
    /// A named type of the table.
    Type(String),
}

/// How strategic merge patch treats a list or map (Kubernetes API conventions, "patchStrategy").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PatchStrategy {
    pub merge: bool,
    pub retain_keys: bool,
}

/// One field of a type.
#[derive(Debug, Clone)]
pub struct Field {
    pub name: String,
    pub shape: Shape,
    pub required: bool,
    pub patch: PatchStrategy,
    /// Key by which elements of a merged list match.
    pub merge_key: Option<String>,
    pub default: Option<Value>,
}

/// One type: its fields by JSON name.
#[derive(Debug, Clone, Default)]
pub struct Type {
    pub fields: BTreeMap<String, Field>,
}

/// All types by name (`core.v1.Pod`).
#[derive(Debug, Default)]
pub struct Schema {
    types: BTreeMap<String, Type>,
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let mut schema = Schema::default();
    for text in [include_str!("../schema/kubernetes-v1.35.schema"), include_str!("../schema/skein-v1.schema")]
    {
        // The files are part of the binary and a test parses them: a mistake cannot come from a user.
        schema.parse(text).expect("the compiled-in schema files parse");
    }
    schema
});

/// A mistake in a schema file, with its line.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("schema line {line}: {problem}")]
pub struct SchemaError {
    pub line: usize,
    pub problem: String,
}

impl Schema {
    /// The table that is compiled into this binary.
    pub fn get() -> &'static Schema {
        &SCHEMA
    }

    pub fn lookup(&self, name: &str) -> Option<&Type> {
        self.types.get(name)
    }

    /// The type behind a shape, where it is a named one.
    pub fn of(&self, shape: &Shape) -> Option<&Type> {
        match shape {
            Shape::Type(name) => self.types.get(name),
            _ => None,
        }
    }

    pub fn types(&self) -> impl Iterator<Item = (&String, &Type)> {
        self.types.iter()
    }

    fn parse(&mut self, text: &str) -> Result<(), SchemaError> {
        let mut current: Option<String> = None;
        for (number, line) in text.lines().enumerate() {
            let fail = |problem: String| SchemaError { line: number + 1, problem };
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let Some(field) = line.strip_prefix("  ") else {
                self.types.insert(line.to_string(), Type::default());
                current = Some(line.to_string());
                continue;
            };
            let name = current.as_ref().ok_or_else(|| fail("field before any type".into()))?;
            let field = parse_field(field).map_err(fail)?;
            if let Some(found) = self.types.get_mut(name) {
                found.fields.insert(field.name.clone(), field);
            }
        }
        Ok(())
    }
}

fn parse_field(line: &str) -> Result<Field, String> {
    let (line, default) = match line.split_once(" default=") {
        Some((head, text)) => {
            (head, Some(serde_json::from_str(text).map_err(|e| format!("default {text}: {e}"))?))
        }
        None => (line, None),
    };
    let mut words = line.split_whitespace();
    let (Some(name), Some(shape)) = (words.next(), words.next()) else {
        return Err(format!("field needs a name and a type: {line}"));
    };
    let mut field = Field {
        name: name.to_string(),
        shape: parse_shape(shape),
        required: false,
        patch: PatchStrategy::default(),
        merge_key: None,
        default,
    };
    for flag in words {
        match flag.split_once('=') {
            None if flag == "required" => field.required = true,
            Some(("patch", value)) => {
                field.patch.merge = value.split(',').any(|word| word == "merge");
                field.patch.retain_keys = value.split(',').any(|word| word == "retainKeys");
            }
            Some(("key", value)) => field.merge_key = Some(value.to_string()),
            // Ownership in server-side apply: read by its own module when that comes.
            Some(("list" | "keys" | "map", _)) => {}
            _ => return Err(format!("unknown flag {flag}")),
        }
    }
    Ok(field)
}

fn parse_shape(word: &str) -> Shape {
    let inner = |open, close| word.strip_prefix(open).and_then(|rest: &str| rest.strip_suffix(close));
    if let Some(item) = inner('[', ']') {
        return Shape::List(Box::new(parse_shape(item)));
    }
    if let Some(item) = inner('{', '}') {
        return Shape::Map(Box::new(parse_shape(item)));
    }
    match word {
        "string" => Shape::String,
        "int" => Shape::Int,
        "number" => Shape::Number,
        "bool" => Shape::Bool,
        "bytes" => Shape::Bytes,
        "time" => Shape::Time,
        "microtime" => Shape::MicroTime,
        "quantity" => Shape::Quantity,
        "intorstring" => Shape::IntOrString,
        "any" => Shape::Any,
        name => Shape::Type(name.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named<'a>(shape: &'a Shape, found: &mut Vec<&'a str>) {
        match shape {
            Shape::Type(name) => found.push(name),
            Shape::List(item) | Shape::Map(item) => named(item, found),
            _ => {}
        }
    }

    #[test]
    fn every_named_type_exists() {
        for (owner, found) in Schema::get().types() {
            for field in found.fields.values() {
                let mut names = Vec::new();
                named(&field.shape, &mut names);
                for name in names {
                    assert!(Schema::get().lookup(name).is_some(), "{owner}.{}: no type {name}", field.name);
                }
            }
        }
    }

    #[test]
    fn merge_keys_are_fields_of_the_element() {
        let schema = Schema::get();
        for (owner, found) in schema.types() {
            for field in found.fields.values() {
                let (Some(key), Shape::List(item)) = (&field.merge_key, &field.shape) else { continue };
                let element = schema.of(item).unwrap();
                assert!(element.fields.contains_key(key), "{owner}.{}: no key {key}", field.name);
            }
        }
    }

    #[test]
    fn containers_merge_by_name() {
        let field = &Schema::get().lookup("core.v1.PodSpec").unwrap().fields["containers"];
        assert!(field.required && field.patch.merge);
        assert_eq!(field.merge_key.as_deref(), Some("name"));
    }

    #[test]
    fn unknown_flag_names_its_line() {
        let error = Schema::default().parse("a.B\n  c string shiny\n").unwrap_err();
        assert_eq!(error, SchemaError { line: 2, problem: "unknown flag shiny".into() });
    }
}
