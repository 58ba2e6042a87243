//! The API server: Kubernetes' HTTP API and our own, on port 6443 (TLS) and on a unix socket for root.
//!
//! Decides who asks and which handler answers. It must not decide what objects become ([`crate::objects`]).

pub mod certificates;
pub mod http;
pub mod listen;
pub mod own;
pub mod path;
pub mod pods;
pub mod resources;
mod socket;
pub mod stream;
pub mod upkeep;
pub mod watch;

use std::sync::Arc;

use api::errors::ApiError;
use api::{discovery, tables};
use hyper::body::Incoming;
use hyper::{Method, Request};
use serde_json::json;

use crate::cluster::Cluster;
use http::{Answer, Reply};
use path::Route;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub groups: Vec<String>,
    /// By the unix socket of this machine.
    pub local: bool,
}

impl User {
    /// Root on this machine, by the unix socket.
    pub fn root() -> User {
        User { name: "root".into(), groups: vec!["system:masters".into()], local: true }
    }

    /// In this release there is one kind of user that may do anything, and nobody else may do something.
    pub fn is_admin(&self) -> bool {
        self.groups.iter().any(|group| group == "system:masters")
    }
}

/// Answers one request.
pub async fn answer(cluster: Arc<Cluster>, user: Option<User>, request: Request<Incoming>) -> Answer {
    let wants_plain = request.uri().path().ends_with("z");
    match route(&cluster, user, request).await {
        Ok(answer) => answer,
        Err(ApiError::NoSuchPath) if !wants_plain => http::plain(404, "404 page not found\n"),
        Err(error) => http::status(&error),
    }
}

async fn route(cluster: &Arc<Cluster>, user: Option<User>, request: Request<Incoming>) -> Reply {
    let path = request.uri().path().trim_end_matches('/').to_string();
    if let "/healthz" | "/livez" | "/readyz" = path.as_str() {
        return Ok(http::plain(200, "ok"));
    }
    let Some(user) = user.filter(User::is_admin) else {
        return http::refuse(request, ApiError::Unauthorized).await;
    };
    let accept = http::Accept::of(&request);
    let wanted = match path::parse(&path) {
        Ok(wanted) => wanted,
        Err(error) => return http::refuse(request, error).await,
    };
    match wanted {
        Route::Version => Ok(http::json(200, &discovery::version())),
        Route::Core if accept.aggregated => Ok(http::discovery(&discovery::aggregated(true))),
        Route::Groups if accept.aggregated => Ok(http::discovery(&discovery::aggregated(false))),
        Route::Core => Ok(http::json(200, &discovery::versions())),
        Route::Groups => Ok(http::json(200, &discovery::group_list())),
        Route::Group(name) => {
            discovery::group(&name).map(|body| http::json(200, &body)).ok_or(ApiError::NoSuchPath)
        }
        Route::GroupVersion(group, version) => discovery::resource_list(&group, &version)
            .map(|body| http::json(200, &body))
            .ok_or(ApiError::NoSuchPath),
        Route::OpenApiIndex => Ok(http::json(200, &discovery::openapi_index())),
        Route::OpenApi(path) => {
            discovery::openapi(&path).map(|body| http::json(200, &body)).ok_or(ApiError::NoSuchPath)
        }
        Route::Own(rest) => own::answer(cluster, &user, &rest, request).await,
        Route::Resource(resource) => match (request.method().clone(), resource.subresource.as_deref()) {
            (Method::GET, Some("log")) => pods::log(cluster, &resource, &request).await,
            (Method::GET | Method::POST, Some("exec")) => Err(ApiError::BadRequest(
                "exec over this path comes with a later release; use 'skein exec'".into(),
            )),
            _ => resources::answer(cluster, resource, accept, request).await,
        },
    }
}

/// Parses `includeObject` of a table request.
pub fn include(text: Option<&str>) -> tables::Include {
    match text {
        Some("None") => tables::Include::None,
        Some("Object") => tables::Include::Object,
        _ => tables::Include::Metadata,
    }
}

/// The answer to a request that nobody may make without credentials.
pub fn unauthorized() -> serde_json::Value {
    let mut status = ApiError::Unauthorized.to_status();
    status["metadata"] = json!({});
    status
}
