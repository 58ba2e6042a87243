//! Names: what a name may look like, and making one from `generateName`.
//!
//! Decides by RFC 1123 and RFC 1035 as Kubernetes applies them. It must not draw randomness: it is handed in.

/// Characters of generated suffixes: no vowels, no digits that read like letters.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Which form the names of a kind have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameForm {
    /// Dots allowed, up to 253 characters.
    Subdomain,
    /// No dots, up to 63 characters.
    Label,
    /// A label that starts with a letter (RFC 1035).
    ServiceLabel,
    /// Anything that can stand in a path (RBAC, Image).
    PathSegment,
}

/// Why a name is not one, or `None` when it is.
pub fn problem(form: NameForm, name: &str) -> Option<&'static str> {
    match form {
        NameForm::Label if !is_label(name) => Some(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (at most 63 characters)",
        ),
        NameForm::ServiceLabel if !is_label(name) || !name.starts_with(|c: char| c.is_ascii_lowercase()) => {
            Some(
                "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (at most 63 characters)",
            )
        }
        NameForm::Subdomain if name.len() > 253 || !name.split('.').all(is_subdomain_part) => Some(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (at most 253 characters)",
        ),
        NameForm::PathSegment
            if name.is_empty()
                || name.len() > 253
                || matches!(name, "." | "..")
                || name.contains(['/', '%']) =>
        {
            Some("a name must have 1 to 253 characters, without '/' and '%', and cannot be '.' or '..'")
        }
        _ => None,
    }
}

/// A label value as RFC 1123 label: `web-1`.
pub fn is_label(name: &str) -> bool {
    name.len() <= 63 && is_subdomain_part(name)
}

fn is_subdomain_part(part: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends = bytes.first().is_some_and(|b| plain(*b)) && bytes.last().is_some_and(|b| plain(*b));
    ends && bytes.iter().all(|b| plain(*b) || *b == b'-')
}

/// Whether the text can be a label's key: optional DNS prefix, then a name of up to 63 characters.
pub fn is_label_key(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(|prefix| problem(NameForm::Subdomain, prefix).is_none())
        && !name.is_empty()
        && is_label_value(name)
}

/// Whether the text can be a label's value: empty, or up to 63 characters that start and end alphanumeric.
pub fn is_label_value(value: &str) -> bool {
    let bytes = value.as_bytes();
    let ends = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    bytes.len() <= 63
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// `prefix` (cut to 58 characters) with five characters drawn from `random`.
pub fn generate(prefix: &str, random: u64) -> String {
    let prefix: String = prefix.chars().take(58).collect();
    format!("{prefix}{}", suffix(random, 5))
}

/// `length` characters of the suffix alphabet drawn from `random`.
pub fn suffix(random: u64, length: usize) -> String {
    let mut rest = random;
    let base = ALPHABET.len() as u64;
    (0..length)
        .map(|_| {
            let at = (rest % base) as usize;
            rest /= base;
            char::from(ALPHABET[at])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_their_form() {
        assert_eq!(problem(NameForm::Subdomain, "a.b-c.9"), None);
        for bad in ["", "A", "a..b", "-a", "a-", "a_b"] {
            assert!(problem(NameForm::Subdomain, bad).is_some(), "{bad}");
        }
        assert!(problem(NameForm::ServiceLabel, "9a").is_some());
        assert!(problem(NameForm::Label, "a.b").is_some());
        assert!(problem(NameForm::PathSegment, "..").is_some());
    }

    #[test]
    fn generated_names_fit_and_repeat_by_seed() {
        let name = generate(&"x".repeat(100), 123_456_789);
        assert_eq!(name.len(), 63);
        assert_eq!(generate("web-", 7), generate("web-", 7));
    }

    #[test]
    fn label_keys_may_have_a_prefix() {
        assert!(is_label_key("kubernetes.io/hostname"));
        assert!(!is_label_key("a/b/c") && !is_label_key("/x") && !is_label_key("x y"));
    }
}
