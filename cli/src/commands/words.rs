//! What users type for objects: `pod web`, `pod/web`, `pods,services`, `deploy`.
//!
//! Decides which kinds and names are meant.

use api::kinds::{KINDS, Kind};

use super::CommandError;

/// The kind behind a word, or the words that would do.
pub fn kind(word: &str) -> Result<&'static Kind, CommandError> {
    Kind::by_user_word(word).ok_or_else(|| {
        let known: Vec<&str> = KINDS.iter().map(|row| row.plural).collect();
        CommandError::Usage(format!("there is no kind \"{word}\"; known are {}", known.join(", ")))
    })
}

/// Kinds with the names given for each; no name means all.
pub fn resolve(words: &[String]) -> Result<Vec<(&'static Kind, Option<String>)>, CommandError> {
    let Some((first, names)) = words.split_first() else {
        return Err(CommandError::Usage("name a kind, for example 'pods' or 'pod/web'".into()));
    };
    if first.contains('/') {
        return words
            .iter()
            .map(|word| {
                let (kind_word, name) = word.split_once('/').ok_or_else(|| {
                    CommandError::Usage(format!("\"{word}\": write KIND/NAME for each object"))
                })?;
                Ok((kind(kind_word)?, Some(name.to_string())))
            })
            .collect();
    }
    let kinds: Vec<&'static Kind> = match first.as_str() {
        "all" => KINDS.iter().filter(|row| row.categories.contains(&"all")).collect(),
        list => list.split(',').map(kind).collect::<Result<_, _>>()?,
    };
    if names.is_empty() {
        return Ok(kinds.into_iter().map(|kind| (kind, None)).collect());
    }
    Ok(kinds.into_iter().flat_map(|kind| names.iter().map(move |name| (kind, Some(name.clone())))).collect())
}

/// The path of an object.
pub fn path(kind: &Kind, namespace: &str, name: &str) -> String {
    format!("{}/{}", kind.path(Some(namespace)), crate::client::escape(name))
}

/// `deployment.apps/web`.
pub fn title(kind: &Kind, name: &str) -> String {
    if kind.group.is_empty() {
        format!("{}/{name}", kind.singular)
    } else {
        format!("{}.{}/{name}", kind.singular, kind.group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(words: &[&str]) -> Vec<(String, Option<String>)> {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        resolve(&words).unwrap().into_iter().map(|(kind, name)| (kind.kind.to_string(), name)).collect()
    }

    #[test]
    fn kinds_and_names_can_be_given_either_way() {
        assert_eq!(
            resolved(&["po", "a", "b"]),
            [("Pod".into(), Some("a".into())), ("Pod".into(), Some("b".into()))]
        );
        assert_eq!(
            resolved(&["svc/x", "deploy/y"]),
            [("Service".into(), Some("x".into())), ("Deployment".into(), Some("y".into()))]
        );
        assert_eq!(resolved(&["pods,svc"]).len(), 2);
        let error = resolve(&["thing".to_string()]).unwrap_err().to_string();
        assert!(error.contains("known are"), "{error}");
    }
}
