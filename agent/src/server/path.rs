//! Paths of the API.
//!
//! Decides which resource a path names. It must not look at methods or bodies.

use api::errors::ApiError;
use api::kinds::Kind;

/// What a path leads to.
#[derive(Debug, PartialEq)]
pub enum Route {
    Version,
    Core,
    Groups,
    Group(String),
    GroupVersion(String, String),
    OpenApiIndex,
    OpenApi(String),
    /// `/skein/v1/...`, the rest of the path.
    Own(String),
    Resource(Resource),
}

/// A collection, an object, or a subresource.
#[derive(Debug, PartialEq)]
pub struct Resource {
    pub kind: &'static Kind,
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub subresource: Option<String>,
}

/// Parses a path without its trailing slash.
pub fn parse(path: &str) -> Result<Route, ApiError> {
    let parts: Vec<String> = path.split('/').skip(1).map(unescape).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match parts.as_slice() {
        ["version"] => Ok(Route::Version),
        ["api"] => Ok(Route::Core),
        ["apis"] => Ok(Route::Groups),
        ["apis", group] => Ok(Route::Group((*group).into())),
        ["openapi", "v3"] => Ok(Route::OpenApiIndex),
        ["openapi", "v3", rest @ ..] => Ok(Route::OpenApi(rest.join("/"))),
        ["skein", "v1", rest @ ..] => Ok(Route::Own(rest.join("/"))),
        ["api", version] => Ok(Route::GroupVersion(String::new(), (*version).into())),
        ["apis", group, version] => Ok(Route::GroupVersion((*group).into(), (*version).into())),
        ["api", version, rest @ ..] => resource("", version, rest),
        ["apis", group, version, rest @ ..] => resource(group, version, rest),
        _ => Err(ApiError::NoSuchPath),
    }
}

fn resource(group: &str, version: &str, rest: &[&str]) -> Result<Route, ApiError> {
    // `namespaces/NS/status` is a subresource of a namespace, `namespaces/NS/pods` a collection within it.
    let (namespace, rest) = match rest {
        ["namespaces", namespace, tail @ ..]
            if !tail.is_empty() && Kind::by_path(group, version, tail[0]).is_some() =>
        {
            (Some(*namespace), tail)
        }
        other => (None, other),
    };
    let (plural, tail) = rest.split_first().ok_or(ApiError::NoSuchPath)?;
    let kind = Kind::by_path(group, version, plural).ok_or(ApiError::NoSuchPath)?;
    if namespace.is_some() && !kind.namespaced {
        return Err(ApiError::NoSuchPath);
    }
    let (name, subresource) = match tail {
        [] => (None, None),
        [name] => (Some(*name), None),
        [name, sub] if kind.subresources.contains(sub) => (Some(*name), Some(*sub)),
        _ => return Err(ApiError::NoSuchPath),
    };
    if kind.namespaced && namespace.is_none() && name.is_some() {
        return Err(ApiError::NoSuchPath);
    }
    Ok(Route::Resource(Resource {
        kind,
        namespace: namespace.map(String::from),
        name: name.map(String::from),
        subresource: subresource.map(String::from),
    }))
}

/// Percent-decoding (RFC 3986); a broken escape is kept as it is.
pub fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = tail
            .get(..2)
            .and_then(|pair| std::str::from_utf8(pair).ok())
            .and_then(|pair| u8::from_str_radix(pair, 16).ok());
        match (first, code) {
            (b'%', Some(code)) => {
                bytes.push(code);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Parameters of a query, decoded, in order.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: Option<&str>) -> Query {
        let pairs = query.unwrap_or("").split('&').filter(|pair| !pair.is_empty());
        let decoded = |text: &str| unescape(&text.replace('+', " "));
        Query(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(key, value)| (decoded(key), decoded(value)))
                .collect(),
        )
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    pub fn is_true(&self, name: &str) -> bool {
        matches!(self.get(name), Some("true" | "1" | "True"))
    }

    pub fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        self.get(name)
            .map(|text| {
                text.parse()
                    .map_err(|_| ApiError::BadRequest(format!("{name}: \"{text}\" is not a whole number")))
            })
            .transpose()
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kind, namespace, name and subresource, `-` for what is absent.
    fn named(path: &str) -> String {
        let text = |part: Option<String>| part.unwrap_or_else(|| "-".into());
        match parse(path) {
            Ok(Route::Resource(r)) => {
                format!("{} {} {} {}", r.kind.kind, text(r.namespace), text(r.name), text(r.subresource))
            }
            _ => "nothing".into(),
        }
    }

    #[test]
    fn paths_name_collections_objects_and_subresources() {
        assert_eq!(named("/api/v1/pods"), "Pod - - -");
        assert_eq!(named("/api/v1/namespaces/a/pods/b/log"), "Pod a b log");
        assert_eq!(named("/api/v1/namespaces/a"), "Namespace - a -");
        assert_eq!(named("/api/v1/namespaces/a/status"), "Namespace - a status");
        assert_eq!(named("/apis/apps/v1/namespaces/a/deployments/b/scale"), "Deployment a b scale");
        for bad in [
            "/api/v1/namespaces/a/nodes",
            "/api/v1/pods/b",
            "/api/v1/nodes/a/nothing",
            "/apis/x/v1/things",
            "/",
        ] {
            assert_eq!(named(bad), "nothing", "{bad}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse(Some("labelSelector=a%3Db%2Cc+in+%28d%29&watch=1&limit=x&bad=%zz"));
        assert_eq!(query.get("labelSelector"), Some("a=b,c in (d)"));
        assert!(query.is_true("watch") && query.number("limit").is_err());
        assert_eq!(query.get("bad"), Some("%zz"));
    }
}
