//! A new cluster's first member: from nothing, or from a backup.
//!
//! Decides what every cluster begins with. It must not be told twice: the caller sees to that.

use super::*;

/// A new cluster as its first member begins it.
struct Founded {
    identity: Identity,
    secrets: Secrets,
    seal_key: SealKey,
    recovery_key: SealKey,
}

impl Founded {
    /// Leaves the sealed keyring for this machine, once it leads, to put it into the store.
    fn seal(&self, config: &Config) -> Result<(), RunError> {
        let to = Keys::from([(self.identity.member.node_id(), self.seal_key.public())]);
        let recovery = Some(self.recovery_key.public());
        let ring = Ring::seal(&self.identity.cluster, &self.secrets, &to, recovery, keyring::fresh)?;
        Ok(keyring::write_first(&config.data, &ring)?)
    }
}

/// A new cluster with a new CA. Nothing of it is written down yet.
fn found(config: &Config, name: Option<String>) -> Result<Founded, RunError> {
    let name = own_name(config, name)?;
    let address = config.own_address()?;
    let mut id = [0u8; 16];
    clock::fill_random(&mut id);
    let cluster_id = pki::hex(&id);
    let seal_key = keyring::own_key(&config.data)?;
    let authority = Authority::create(&cluster_id[..8], clock::wall())?;
    let key = pki::new_key()?;
    let signing_request = pki::signing_request(&key)?;
    let request = JoinRequest {
        secret: String::new(),
        name: name.clone(),
        address: SocketAddr::new(address, config.mesh_port),
        api_port: config.api_port,
        signing_request,
    };
    let certificate = enrol::sign_here(&authority, &request, config.certificate_lifetime)?;
    let hash = pki::key_hash(&pki::certificate_der(&certificate)?)?;
    let member = Member {
        name,
        id: id_of_key(&hash),
        key: pki::hex(&hash),
        address: request.address,
        api_port: config.api_port,
        block: 0,
        no_voter: false,
        seal_key: pki::hex(&seal_key.public()),
        versions: members::own_versions(),
    };
    let identity = Identity {
        cluster: cluster_id,
        epoch: 0,
        member: member.clone(),
        key,
        certificate,
        ca_certificate: authority.certificate.clone(),
        known: vec![member],
    };
    let secrets = Secrets::new(authority.key.clone(), keyring::fresh());
    Ok(Founded { identity, secrets, seal_key, recovery_key: SealKey::from_bytes(keyring::fresh()) })
}

pub(super) async fn init(config: &Config, name: Option<String>) -> Result<(Arc<Cluster>, Value), RunError> {
    look_first(config).await?;
    let new = found(config, name)?;
    new.identity.save(&config.data)?;
    new.seal(config)?;
    let cluster = start(config, new.identity, Birth::First).await?;
    write_first_objects(&cluster).await?;
    let answer = founded(&cluster, &new.recovery_key).await?;
    Ok((cluster, answer))
}

pub(super) async fn restore_cluster(
    config: &Config,
    upload: &Upload,
    name: Option<String>,
    recovery_key: Option<&SealKey>,
) -> Result<(Arc<Cluster>, Value), RunError> {
    look_first(config).await?;
    let mut new = found(config, name)?;
    let restored = restore::restore(&config.data, &new.identity, &upload.0)?;
    if let Some(key) = recovery_key {
        let ring = restored.ring.as_ref().ok_or(keyring::OpenError::Absent)?;
        let old = ring.open_by_recovery(&restored.cluster, key)?;
        new.secrets.take_over(&old, keyring::fresh());
    }
    new.seal(config)?;
    // Last: a restore that was cut off has made no member, and begins anew.
    new.identity.save(&config.data)?;
    let cluster = start(config, new.identity, Birth::Again).await?;
    if !cluster.store.wait_for_leader(std::time::Duration::from_secs(10)).await {
        return Err(RunError::NoLeader);
    }
    let mut answer = founded(&cluster, &new.recovery_key).await?;
    answer["secretsKept"] = json!(recovery_key.is_some());
    answer["from"] = json!(restored.cluster);
    answer["objects"] = json!(restored.objects);
    Ok((cluster, answer))
}

/// What the first member of a cluster is told of it.
async fn founded(cluster: &Arc<Cluster>, recovery_key: &SealKey) -> Result<Value, RunError> {
    if !signing::wait_for_keyring(cluster).await {
        return Err(RunError::Answer("the keyring did not get into the store".into()));
    }
    let token =
        enrol::create_token(cluster, false).await.map_err(|error| RunError::Answer(error.to_string()))?;
    Ok(
        json!({"cluster": cluster.identity.cluster, "name": cluster.name(), "address": cluster.identity.member.address.to_string(), "token": token.to_string(), "recoveryKey": *keyring::recovery_text(recovery_key)}),
    )
}

/// What every cluster has: its first member and its namespaces.
async fn write_first_objects(cluster: &Arc<Cluster>) -> Result<(), RunError> {
    if !cluster.store.wait_for_leader(std::time::Duration::from_secs(10)).await {
        return Err(RunError::NoLeader);
    }
    let transaction = enrol::enrolment(&cluster.identity.member, &cluster.store.view());
    cluster.store.transact(transaction, None).await.map_err(RunError::First)?;
    let kind = Kind::by_name("Namespace").expect("Namespace is a row of the table of kinds");
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        let mut object = Object(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
        crate::objects::admission::prepare_create(kind, "", &mut object, clock::wall(), &clock::uuid());
        api::defaults::apply(kind.type_name, &mut object.0);
        let plan = Plan::new().put(&keys::object(kind, "", name), object.to_vec());
        cluster.store.transact(plan.build(), None).await.map_err(RunError::First)?;
    }
    info!(at = %duration::rfc3339(clock::wall()), "cluster created");
    Ok(())
}
