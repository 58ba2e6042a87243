//! Label and field selectors.
//!
//! Decides whether an object matches. It must not decide who may ask.

use serde_json::{Map, Value};

use crate::kinds::Kind;
use crate::object::Object;

/// One requirement of a label selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    In { key: String, values: Vec<String> },
    NotIn { key: String, values: Vec<String> },
    Exists { key: String },
    Absent { key: String },
}

/// All requirements must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector(pub Vec<Requirement>);

/// The selector cannot be parsed, or names a field that this kind cannot be selected by.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unable to parse requirement: {0}")]
pub struct SelectorError(pub String);

impl LabelSelector {
    /// Parses `a=b,c!=d,e in (x,y),f notin (z),g,!h`.
    pub fn parse(text: &str) -> Result<LabelSelector, SelectorError> {
        split_outside_brackets(text)
            .into_iter()
            .map(parse_requirement)
            .collect::<Result<_, _>>()
            .map(LabelSelector)
    }

    /// The selector of an object's spec: `matchLabels` and `matchExpressions`. `None` is what matches nothing.
    pub fn from_object(selector: &Value) -> Result<LabelSelector, SelectorError> {
        let mut requirements = equalities(selector.get("matchLabels").and_then(Value::as_object));
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let key = expression["key"].as_str().unwrap_or("").to_string();
            let values: Vec<String> = strings(&expression["values"]);
            requirements.push(match expression["operator"].as_str().unwrap_or("") {
                "In" => Requirement::In { key, values },
                "NotIn" => Requirement::NotIn { key, values },
                "Exists" => Requirement::Exists { key },
                "DoesNotExist" => Requirement::Absent { key },
                other => {
                    return Err(SelectorError(format!(
                        "\"{other}\" is not an operator: use In, NotIn, Exists or DoesNotExist"
                    )));
                }
            });
        }
        Ok(LabelSelector(requirements))
    }

    /// A plain map of labels, as in a Service's selector.
    pub fn from_map(labels: &Map<String, Value>) -> LabelSelector {
        LabelSelector(equalities(Some(labels)))
    }

    pub fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        let value = |key: &str| labels.and_then(|labels| labels.get(key)).and_then(Value::as_str);
        self.0.iter().all(|requirement| match requirement {
            Requirement::In { key, values } => {
                value(key).is_some_and(|found| values.iter().any(|v| v == found))
            }
            Requirement::NotIn { key, values } => {
                value(key).is_none_or(|found| values.iter().all(|v| v != found))
            }
            Requirement::Exists { key } => value(key).is_some(),
            Requirement::Absent { key } => value(key).is_none(),
        })
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts: Vec<String> = self
            .0
            .iter()
            .map(|requirement| match requirement {
                Requirement::In { key, values } if values.len() == 1 => format!("{key}={}", values[0]),
                Requirement::In { key, values } => format!("{key} in ({})", values.join(",")),
                Requirement::NotIn { key, values } if values.len() == 1 => format!("{key}!={}", values[0]),
                Requirement::NotIn { key, values } => format!("{key} notin ({})", values.join(",")),
                Requirement::Exists { key } => key.clone(),
                Requirement::Absent { key } => format!("!{key}"),
            })
            .collect();
        f.write_str(&parts.join(","))
    }
}

fn equalities(labels: Option<&Map<String, Value>>) -> Vec<Requirement> {
    let pairs = labels.into_iter().flatten();
    pairs
        .map(|(key, value)| Requirement::In {
            key: key.clone(),
            values: vec![value.as_str().unwrap_or("").to_string()],
        })
        .collect()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(String::from)).collect()
}

fn split_outside_brackets(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0usize, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn parse_requirement(part: &str) -> Result<Requirement, SelectorError> {
    if let Some((key, values)) = part.split_once(" notin ") {
        return Ok(Requirement::NotIn { key: label_key(key)?, values: bracketed(values)? });
    }
    if let Some((key, values)) = part.split_once(" in ") {
        return Ok(Requirement::In { key: label_key(key)?, values: bracketed(values)? });
    }
    if let Some((key, value)) = part.split_once("!=") {
        return Ok(Requirement::NotIn { key: label_key(key)?, values: vec![value.trim().to_string()] });
    }
    if let Some((key, value)) = part.split_once('=') {
        let value = value.strip_prefix('=').unwrap_or(value).trim();
        return Ok(Requirement::In { key: label_key(key)?, values: vec![value.to_string()] });
    }
    match part.strip_prefix('!') {
        Some(key) => Ok(Requirement::Absent { key: label_key(key)? }),
        None => Ok(Requirement::Exists { key: label_key(part)? }),
    }
}

fn label_key(text: &str) -> Result<String, SelectorError> {
    let key = text.trim();
    if crate::names::is_label_key(key) {
        Ok(key.to_string())
    } else {
        Err(SelectorError(format!("\"{key}\" is not a label key")))
    }
}

fn bracketed(text: &str) -> Result<Vec<String>, SelectorError> {
    let inner = text.trim().strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
    let inner =
        inner.ok_or_else(|| SelectorError(format!("expected (values) after in or notin, got \"{text}\"")))?;
    Ok(inner.split(',').map(|value| value.trim().to_string()).collect())
}

/// A field selector: `spec.nodeName=a,status.phase!=Running`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<FieldTerm>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct FieldTerm {
    pointer: String,
    value: String,
    equal: bool,
}

impl FieldSelector {
    /// Parses the selector for one kind; only the fields that the kind's row names can be used.
    pub fn parse(kind: &Kind, text: &str) -> Result<FieldSelector, SelectorError> {
        let terms = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        terms.map(|part| parse_term(kind, part)).collect::<Result<_, _>>().map(FieldSelector)
    }

    pub fn matches(&self, object: &Object) -> bool {
        self.0.iter().all(|term| {
            let found = match object.0.pointer(&term.pointer) {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Null) | None => String::new(),
                Some(other) => other.to_string(),
            };
            (found == term.value || (found.is_empty() && term.value == "false")) == term.equal
        })
    }

    /// The value that a field must have, where the selector says so: lets lists use an index.
    pub fn wants(&self, field: &str) -> Option<&str> {
        let pointer = format!("/{}", field.replace('.', "/"));
        self.0.iter().find(|term| term.equal && term.pointer == pointer).map(|term| term.value.as_str())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn parse_term(kind: &Kind, part: &str) -> Result<FieldTerm, SelectorError> {
    let (field, value, equal) = if let Some((field, value)) = part.split_once("!=") {
        (field, value, false)
    } else if let Some((field, value)) = part.split_once('=') {
        (field, value.strip_prefix('=').unwrap_or(value), true)
    } else {
        return Err(SelectorError(format!("\"{part}\" has no = or !=")));
    };
    let permitted = ["metadata.name", "metadata.namespace"].iter().chain(kind.selectable_fields);
    if !permitted.clone().any(|name| *name == field) {
        let names: Vec<&str> = permitted.copied().collect();
        return Err(SelectorError(format!(
            "\"{field}\" is not a known field selector: only {} are supported",
            names.join(", ")
        )));
    }
    Ok(FieldTerm { pointer: format!("/{}", field.replace('.', "/")), value: value.to_string(), equal })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn label_selectors_match_like_kubernetes() {
        let labels = json!({"app": "web", "tier": "front"});
        let labels = labels.as_object();
        for (text, expected) in [
            ("app=web", true),
            ("app==web,tier!=back", true),
            ("app in (web, db),!gone", true),
            ("app notin (web)", false),
            ("missing", false),
            ("missing!=x", true),
            ("", true),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap().matches(labels), expected, "{text}");
        }
        assert!(LabelSelector::parse("a in b").is_err());
        assert!(LabelSelector::parse("=x").is_err());
    }

    #[test]
    fn field_selectors_know_the_fields_of_a_kind() {
        let pods = Kind::by_name("Pod").unwrap();
        let selector = FieldSelector::parse(pods, "spec.nodeName=a,status.phase!=Running").unwrap();
        assert!(
            selector.matches(&Object(json!({"spec": {"nodeName": "a"}, "status": {"phase": "Pending"}})))
        );
        assert!(!selector.matches(&Object(json!({"spec": {"nodeName": "b"}}))));
        assert_eq!(selector.wants("spec.nodeName"), Some("a"));
        let error = FieldSelector::parse(pods, "spec.color=red").unwrap_err();
        assert!(error.to_string().contains("status.phase"), "{error}");
    }
}
