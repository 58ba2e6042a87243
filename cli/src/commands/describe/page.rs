//! A description as text: labelled fields, indented, values of neighbours in one column.
//!
//! Decides the layout. It must not know objects.

use serde_json::Value;

use crate::output;

/// Lines of a description, laid out at its end.
#[derive(Debug, Default)]
pub struct Page(Vec<Line>);

#[derive(Debug)]
enum Line {
    /// Depth, label, and the value's lines.
    Field(usize, String, Vec<String>),
    /// A label with what follows it indented.
    Head(usize, String),
    Text(usize, String),
}

impl Page {
    pub fn field(&mut self, depth: usize, label: &str, value: impl Into<String>) {
        self.list(depth, label, vec![value.into()]);
    }

    /// Only where there is something to say.
    pub fn some(&mut self, depth: usize, label: &str, value: &Value) {
        let text = plain(value);
        if !text.is_empty() {
            self.field(depth, label, text);
        }
    }

    /// One value a line, `<none>` where there is none.
    pub fn list(&mut self, depth: usize, label: &str, values: Vec<String>) {
        let values = if values.is_empty() { vec!["<none>".to_string()] } else { values };
        self.0.push(Line::Field(depth, label.into(), values));
    }

    pub fn head(&mut self, depth: usize, label: &str) {
        self.0.push(Line::Head(depth, label.into()));
    }

    /// `key=value` of a map.
    pub fn pairs(&mut self, depth: usize, label: &str, map: &Value) {
        self.list(depth, label, pairs(map));
    }

    /// A table under a label, its headers underlined.
    pub fn table(&mut self, depth: usize, label: &str, headers: &[&str], rows: &[Vec<String>]) {
        if rows.is_empty() {
            return self.field(depth, label, "<none>");
        }
        self.head(depth, label);
        let line: Vec<String> = headers.iter().map(|header| "-".repeat(header.len())).collect();
        let body: Vec<Vec<String>> = std::iter::once(line).chain(rows.iter().cloned()).collect();
        let headers: Vec<String> = headers.iter().map(ToString::to_string).collect();
        let text = output::layout(&headers, &body);
        self.0.extend(text.lines().map(|line| Line::Text(depth + 1, line.to_string())));
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        for (at, line) in self.0.iter().enumerate() {
            match line {
                Line::Head(depth, label) => text.push_str(&format!("{}{label}:\n", pad(*depth))),
                Line::Text(depth, line) => text.push_str(&format!("{}{line}\n", pad(*depth))),
                Line::Field(depth, label, values) => {
                    let width = self.width(at, *depth);
                    for (index, value) in values.iter().enumerate() {
                        let label = if index == 0 { format!("{label}:") } else { String::new() };
                        let line = format!("{}{label:<width$}{value}", pad(*depth));
                        text.push_str(&format!("{}\n", line.trim_end()));
                    }
                }
            }
        }
        text
    }

    /// Of the labels of the fields of one depth that stand together.
    fn width(&self, at: usize, depth: usize) -> usize {
        let label = |line: &Line| match line {
            Line::Field(other, label, _) if *other == depth => Some(label.chars().count()),
            _ => None,
        };
        let before = self.0[..at].iter().rev().map_while(label).max().unwrap_or(0);
        let after = self.0[at..].iter().map_while(label).max().unwrap_or(0);
        before.max(after) + 3
    }
}

fn pad(depth: usize) -> String {
    "  ".repeat(depth)
}

/// `key=value` of each entry.
pub fn pairs(map: &Value) -> Vec<String> {
    let entries = map.as_object().into_iter().flatten();
    let shown = entries.filter(|(key, _)| !key.starts_with("kubectl.kubernetes.io/last-applied"));
    shown.map(|(key, value)| format!("{key}={}", plain(value))).collect()
}

/// A value without quotes; nothing for what is not there.
pub fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `True` or `False`.
pub fn truth(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

/// The items of a list at a pointer.
pub fn items<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The text at a pointer.
pub fn at(object: &Value, pointer: &str) -> String {
    object.pointer(pointer).map(plain).unwrap_or_default()
}

/// The text at a pointer, or a word for "nothing".
pub fn or(object: &Value, pointer: &str, nothing: &str) -> String {
    let text = at(object, pointer);
    if text.is_empty() { nothing.into() } else { text }
}

/// What all objects begin with.
pub fn opening(page: &mut Page, object: &Value) {
    page.field(0, "Name", at(object, "/metadata/name"));
    page.some(0, "Namespace", &object["metadata"]["namespace"]);
}

pub fn labels(page: &mut Page, object: &Value) {
    page.pairs(0, "Labels", &object["metadata"]["labels"]);
    page.pairs(0, "Annotations", &object["metadata"]["annotations"]);
}

pub fn owner(page: &mut Page, object: &Value) {
    let owners = items(object, "/metadata/ownerReferences");
    if let Some(owner) = owners.iter().find(|owner| owner["controller"] == true) {
        page.field(0, "Controlled By", format!("{}/{}", plain(&owner["kind"]), plain(&owner["name"])));
    }
}

/// The conditions with the given fields as columns.
pub fn conditions(page: &mut Page, object: &Value, columns: &[(&str, &str)]) {
    let headers: Vec<&str> = columns.iter().map(|(header, _)| *header).collect();
    let row = |condition: &Value| columns.iter().map(|(_, field)| plain(&condition[*field])).collect();
    let rows: Vec<Vec<String>> = items(object, "/status/conditions").iter().map(row).collect();
    page.table(0, "Conditions", &headers, &rows);
}
