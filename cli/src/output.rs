//! Tables and documents on a terminal.
//!
//! Decides widths and colours. It must not ask the agent anything.

use std::io::{IsTerminal, Write};

use serde_json::Value;

/// How `get` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Wide,
    Json,
    Yaml,
    Name,
}

/// Prints a text; a closed pipe is no error.
pub fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// A warning on standard error.
pub fn warn(text: &str) {
    eprintln!("{} {text}", marked("Warning:", "\x1b[33m"));
}

/// An error on standard error.
pub fn error(error: &dyn std::fmt::Display) {
    eprintln!("{} {error}", marked("error:", "\x1b[31m"));
}

/// Coloured on a terminal, unless the user wants none (<https://no-color.org>).
fn marked(word: &str, colour: &str) -> String {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    match std::io::stderr().is_terminal() && !refused {
        true => format!("{colour}{word}\x1b[0m"),
        false => word.into(),
    }
}

/// Lays out rows under headers, columns three spaces apart.
pub fn layout(headers: &[String], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = headers.iter().map(|header| header.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String]| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", padded.join("   ").trim_end())
    };
    let mut text = if headers.is_empty() { String::new() } else { line(headers) };
    rows.iter().for_each(|row| text.push_str(&line(row)));
    text
}

/// Which columns of a table document are shown.
fn shown(table: &Value, wide: bool) -> Vec<(usize, String)> {
    let definitions = table["columnDefinitions"].as_array().into_iter().flatten().enumerate();
    definitions
        .filter(|(_, column)| wide || column["priority"] == 0)
        .map(|(index, column)| (index, column["name"].as_str().unwrap_or("").to_uppercase()))
        .collect()
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// A `Table` document as text. `namespaces` adds a first column.
pub fn table(table: &Value, wide: bool, namespaces: bool) -> String {
    let columns = shown(table, wide);
    let mut headers: Vec<String> = columns.iter().map(|(_, name)| name.clone()).collect();
    if namespaces {
        headers.insert(0, "NAMESPACE".into());
    }
    layout(&headers, &rows(table, &columns, namespaces))
}

/// The rows of a table with as many cells as `columns` names.
fn rows(table: &Value, columns: &[(usize, String)], namespaces: bool) -> Vec<Vec<String>> {
    let rows = table["rows"].as_array().into_iter().flatten();
    rows.map(|row| {
        let mut cells: Vec<String> = columns.iter().map(|(index, _)| cell(&row["cells"][*index])).collect();
        if namespaces {
            cells.insert(0, cell(&row["object"]["metadata"]["namespace"]));
        }
        cells
    })
    .collect()
}

/// A document as YAML.
pub fn yaml(value: &Value) -> String {
    serde_yaml_ng::to_string(value).unwrap_or_default()
}

/// A document as indented JSON.
pub fn json(value: &Value) -> String {
    format!("{}\n", serde_json::to_string_pretty(value).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let document = json!({
            "columnDefinitions": [{"name": "Name", "priority": 0}, {"name": "Ready", "priority": 0}, {"name": "IP", "priority": 1}],
            "rows": [{"cells": ["a-long-name", "1/1", "10.42.0.2"]}, {"cells": ["b", "0/1", null]}],
        });
        assert_eq!(
            table(&document, false, false),
            "NAME          READY\na-long-name   1/1\nb             0/1\n"
        );
        assert!(table(&document, true, false).contains("10.42.0.2"));
    }
}
