//! The verbs on objects: maps method, query and body to [`crate::objects`] and its results to answers.
//!
//! Decides nothing about objects; it must stay the same for every kind.

use std::sync::Arc;

use api::errors::ApiError;
use api::patch::PatchFormat;
use api::selector::{FieldSelector, LabelSelector};
use api::{Object, tables};
use hyper::body::Incoming;
use hyper::{Method, Request};
use serde_json::{Value, json};

use super::http::{self, Accept, Answer, Reply};
use super::path::{Query, Resource};
use super::{include, watch};
use crate::clock;
use crate::cluster::Cluster;
use crate::objects::delete::DeleteOptions;
use crate::objects::list::{self, Selection};
use crate::objects::{FieldValidation, Freshness, Part, Target, WriteOptions, Written};

/// Answers a request on a collection, an object, its status or its scale.
pub async fn answer(
    cluster: &Arc<Cluster>,
    resource: Resource,
    accept: Accept,
    request: Request<Incoming>,
) -> Reply {
    if accept.impossible {
        return http::refuse(request, ApiError::NotAcceptable).await;
    }
    let query = Query::parse(request.uri().query());
    let method = request.method().clone();
    match (&resource.name, method) {
        (None, Method::GET) if query.is_true("watch") => {
            watch::answer(cluster, selection(&resource, &query)?, accept, &query).await
        }
        (None, Method::GET) => collection(cluster, &resource, accept, &query).await,
        (None, Method::POST) => create(cluster, &resource, &query, request).await,
        (None, Method::DELETE) => delete_collection(cluster, &resource, &query, request).await,
        (Some(_), Method::GET) if query.is_true("watch") => {
            let mut selection = selection(&resource, &query)?;
            let name = resource.name.clone().unwrap_or_default();
            selection.fields = field_selector(&resource, &format!("metadata.name={name}"))?;
            watch::answer(cluster, selection, accept, &query).await
        }
        (Some(name), Method::GET) => get(cluster, &resource, name, accept, &query).await,
        (Some(name), Method::PUT) => update(cluster, &resource, name, &query, request).await,
        (Some(name), Method::PATCH) => patch(cluster, &resource, name, &query, request).await,
        (Some(name), Method::DELETE) => delete(cluster, &resource, name, &query, request).await,
        _ => http::refuse(request, ApiError::MethodNotAllowed).await,
    }
}

fn target<'a>(resource: &'a Resource, name: &'a str) -> Target<'a> {
    Target { kind: resource.kind, namespace: resource.namespace.as_deref().unwrap_or(""), name }
}

fn options(resource: &Resource, query: &Query) -> Result<WriteOptions, ApiError> {
    let field_validation = match query.get("fieldValidation") {
        None | Some("Warn") => FieldValidation::Warn,
        Some("Strict") => FieldValidation::Strict,
        Some("Ignore") => FieldValidation::Ignore,
        Some(other) => {
            return Err(ApiError::BadRequest(format!(
                "fieldValidation: \"{other}\" is not Ignore, Warn or Strict"
            )));
        }
    };
    let dry_run = match query.get("dryRun") {
        None => false,
        Some("All") => true,
        Some(other) => {
            return Err(ApiError::BadRequest(format!("dryRun: \"{other}\" is not supported, only All is")));
        }
    };
    let part = if resource.subresource.as_deref() == Some("status") { Part::Status } else { Part::Main };
    Ok(WriteOptions { dry_run, field_validation, part })
}

fn freshness(query: &Query) -> Result<Freshness, ApiError> {
    Ok(match query.number("resourceVersion")? {
        None => Freshness::Linearizable,
        Some(0) => Freshness::Any,
        Some(revision) => Freshness::AtLeast(revision),
    })
}

fn field_selector(resource: &Resource, text: &str) -> Result<FieldSelector, ApiError> {
    FieldSelector::parse(resource.kind, text).map_err(|error| ApiError::BadRequest(error.to_string()))
}

fn selection(resource: &Resource, query: &Query) -> Result<Selection, ApiError> {
    let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or(""))
        .map_err(|error| ApiError::BadRequest(error.to_string()))?;
    let fields = field_selector(resource, query.get("fieldSelector").unwrap_or(""))?;
    Ok(Selection { kind: resource.kind, namespace: resource.namespace.clone(), labels, fields })
}

async fn collection(cluster: &Cluster, resource: &Resource, accept: Accept, query: &Query) -> Reply {
    let mut view = cluster.objects.view(freshness(query)?).await?;
    // The first page may have come from an agent that was ahead of this one.
    if let Some(revision) =
        query.get("continue").and_then(list::revision_of).filter(|at| *at > view.revision())
    {
        let newer = cluster.store.at_least(revision).await;
        view = newer
            .ok_or_else(|| ApiError::Unavailable("this machine has not caught up yet; try again".into()))?;
    }
    let limit = query.number("limit")?.unwrap_or(0) as usize;
    let page = list::page(&view, &selection(resource, query)?, limit, query.get("continue"))?;
    let kind = resource.kind;
    if accept.table {
        let (now, include) = (clock::wall(), include(query.get("includeObject")));
        let rows = page.items.iter().map(|object| tables::row(kind, object, now, include)).collect();
        return Ok(http::json(200, &tables::table(kind, rows, list::metadata(&page), true)));
    }
    if accept.metadata_only {
        let metadata = list::metadata(&page);
        let items: Vec<Value> = page.items.iter().map(partial).collect();
        return Ok(http::json(
            200,
            &json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items}),
        ));
    }
    Ok(http::json(200, &list::document(kind, page)))
}

fn partial(object: &Object) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object.0["metadata"]})
}

async fn get(cluster: &Cluster, resource: &Resource, name: &str, accept: Accept, query: &Query) -> Reply {
    let object = cluster.objects.get(target(resource, name), freshness(query)?).await?;
    if resource.subresource.as_deref() == Some("scale") {
        return Ok(http::json(200, &scale_of(&object)));
    }
    if accept.table {
        let row = tables::row(resource.kind, &object, clock::wall(), include(query.get("includeObject")));
        let metadata = json!({"resourceVersion": object.resource_version()});
        return Ok(http::json(200, &tables::table(resource.kind, vec![row], metadata, true)));
    }
    Ok(http::json(200, &if accept.metadata_only { partial(&object) } else { object.0 }))
}

async fn create(cluster: &Cluster, resource: &Resource, query: &Query, request: Request<Incoming>) -> Reply {
    let kind = resource.kind;
    let media = http::content_type(&request);
    let body = http::document(&media, &http::body(request).await?)?;
    let namespace = match (&resource.namespace, kind.namespaced) {
        (Some(namespace), true) => namespace.clone(),
        (None, true) => {
            return Err(ApiError::BadRequest(
                "this kind is created in a namespace: use /namespaces/NAME/ in the path".into(),
            ));
        }
        _ => String::new(),
    };
    let written = cluster.objects.create(kind, &namespace, body, options(resource, query)?).await?;
    Ok(written_answer(201, written))
}

fn written_answer(code: u16, written: Written) -> Answer {
    http::with_warnings(http::json(code, &written.object.0), &written.warnings)
}

async fn update(
    cluster: &Cluster,
    resource: &Resource,
    name: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Reply {
    let media = http::content_type(&request);
    let body = http::document(&media, &http::body(request).await?)?;
    let options = options(resource, query)?;
    if resource.subresource.as_deref() == Some("scale") {
        return scale(cluster, resource, name, options, |_| Ok(body.clone())).await;
    }
    Ok(written_answer(200, cluster.objects.update(target(resource, name), body, options).await?))
}

async fn patch(
    cluster: &Cluster,
    resource: &Resource,
    name: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Reply {
    let format = PatchFormat::from_media_type(&http::content_type(&request))?;
    let bytes = http::body(request).await?;
    let options = options(resource, query)?;
    if resource.subresource.as_deref() == Some("scale") {
        let kind = resource.kind;
        return scale(cluster, resource, name, options, |current| {
            let mut document = current.clone();
            api::patch::apply(kind, name, format, &bytes, &mut document)?;
            Ok(document)
        })
        .await;
    }
    Ok(written_answer(200, cluster.objects.patch(target(resource, name), format, &bytes, options).await?))
}

/// The `Scale` document (autoscaling/v1) of an object with replicas.
fn scale_of(object: &Object) -> Value {
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        metadata[field] = object.0["metadata"][field].clone();
    }
    let selector = LabelSelector::from_object(&object.0["spec"]["selector"])
        .map(|found| found.to_string())
        .unwrap_or_default();
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": object.int("/spec/replicas")},
        "status": {"replicas": object.int("/status/replicas"), "selector": selector},
    })
}

async fn scale(
    cluster: &Cluster,
    resource: &Resource,
    name: &str,
    options: WriteOptions,
    mut make: impl FnMut(&Value) -> Result<Value, ApiError>,
) -> Reply {
    let written = cluster.objects.change(target(resource, name), options, |current| {
        let wanted = make(&scale_of(current))?;
        let replicas = wanted.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
        let mut new = current.clone();
        new.set(&["spec", "replicas"], json!(replicas));
        match wanted.pointer("/metadata/resourceVersion").and_then(Value::as_str) {
            Some(revision) if !revision.is_empty() => {
                new.set(&["metadata", "resourceVersion"], json!(revision))
            }
            _ => {
                new.metadata_mut().remove("resourceVersion");
            }
        }
        Ok(new)
    });
    Ok(http::json(200, &scale_of(&written.await?)))
}

async fn delete_options(query: &Query, request: Request<Incoming>) -> Result<DeleteOptions, ApiError> {
    let media = http::content_type(&request);
    let bytes = http::body(request).await?;
    let body = if bytes.is_empty() { Value::Null } else { http::document(&media, &bytes)? };
    let mut options = DeleteOptions::from_body(&body);
    if let Some(seconds) = query.number("gracePeriodSeconds")? {
        options.grace_period_seconds = Some(seconds as i64);
    }
    if let Some(policy) = query.get("propagationPolicy") {
        options.propagation = Some(policy.into());
    }
    options.dry_run |= query.get("dryRun") == Some("All");
    match options.propagation.as_deref() {
        None | Some("Background" | "Foreground" | "Orphan") => Ok(options),
        Some(other) => Err(ApiError::BadRequest(format!(
            "propagationPolicy: \"{other}\" is not Background, Foreground or Orphan"
        ))),
    }
}

async fn delete(
    cluster: &Cluster,
    resource: &Resource,
    name: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Reply {
    let options = delete_options(query, request).await?;
    Ok(http::json(200, &cluster.objects.delete(target(resource, name), &options).await?))
}

async fn delete_collection(
    cluster: &Cluster,
    resource: &Resource,
    query: &Query,
    request: Request<Incoming>,
) -> Reply {
    let selection = selection(resource, query)?;
    let options = delete_options(query, request).await?;
    let view = cluster.objects.view(Freshness::Linearizable).await?;
    let page = list::page(&view, &selection, 0, None)?;
    for object in &page.items {
        let target = Target { kind: resource.kind, namespace: object.namespace(), name: object.name() };
        match cluster.objects.delete(target, &options).await {
            Ok(_) | Err(ApiError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(http::json(200, &list::document(resource.kind, page)))
}
