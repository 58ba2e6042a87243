//! Two members on this machine's loopback, with real QUIC between them.

use std::time::Duration;

use quinn::ConnectionError;

use super::*;
use crate::members::{Member, id_of_key};
use crate::pki;

struct Side {
    mesh: Mesh,
    roster: Roster,
    member: Member,
    incoming: mpsc::Receiver<Incoming>,
}

fn side(name: &str) -> Side {
    side_in(name, 0)
}

fn side_in(name: &str, epoch: u64) -> Side {
    let now = jiff::Timestamp::from_second(1_800_000_000).unwrap();
    let authority = pki::Authority::create("test", now).unwrap();
    let key = pki::new_key().unwrap();
    let request = pki::signing_request(&key).unwrap();
    let certificate = authority.sign_member(&request, name, &[], now, Duration::from_secs(60)).unwrap();
    let hash = pki::key_hash(&pki::certificate_der(&certificate).unwrap()).unwrap();
    let mut member = Member {
        name: name.into(),
        id: id_of_key(&hash),
        key: pki::hex(&hash),
        address: "127.0.0.1:0".parse().unwrap(),
        api_port: 0,
        block: 0,
        no_voter: false,
        seal_key: String::new(),
        versions: None,
    };
    let identity = Identity {
        cluster: "00".repeat(16),
        epoch,
        member: member.clone(),
        key,
        certificate,
        ca_certificate: authority.certificate.clone(),
        known: Vec::new(),
    };
    let (sender, incoming) = mpsc::channel(16);
    let roster = Roster::default();
    let credential = Credential::new(&identity).unwrap();
    let mesh = Mesh::start(&identity, &credential, roster.clone(), sender).unwrap();
    member.address.set_port(mesh.0.mesh.endpoint.local_addr().unwrap().port());
    Side { mesh, roster, member, incoming }
}

/// Asks the other end, which answers, over the connection of this class.
async fn asked(from: &Side, to: &mut Side, class: Class) -> Result<Response, MeshError> {
    let id = to.member.node_id();
    let answering = async {
        while let Some(incoming) = to.incoming.recv().await {
            if let Incoming::Request { mut send, .. } = incoming {
                wire::write_frame(&mut send, &Response::Exchanged(vec![7])).await.unwrap();
                let _ = send.finish();
            }
        }
        unreachable!("the mesh runs");
    };
    let asking = async {
        let (_send, mut receive) = from.mesh.open(id, class, &Request::Exchange(Vec::new())).await?;
        let answer = wire::read_frame(&mut receive).await;
        answer.map_err(|why| from.mesh.broken(id, why.to_string()))
    };
    tokio::select! {
        answer = tokio::time::timeout(Duration::from_secs(5), asking) => answer.unwrap(),
        () = answering => unreachable!(),
    }
}

async fn end_of(connection: &Connection) -> ConnectionError {
    tokio::time::timeout(Duration::from_secs(5), connection.closed()).await.unwrap()
}

#[tokio::test]
async fn a_removed_members_open_connections_are_closed_and_its_key_is_refused() {
    let (mut stays, removed) = (side("stays"), side("removed"));
    let both = vec![stays.member.clone(), removed.member.clone()];
    stays.roster.replace(both.clone());
    removed.roster.replace(both);
    let to = stays.member.node_id();
    let classes = [Class::Control, Class::Bulk, Class::Raft];
    let mut open = Vec::new();
    for class in classes {
        assert!(matches!(asked(&removed, &mut stays, class).await, Ok(Response::Exchanged(_))));
        open.push(removed.mesh.0.links.used((to, class)).unwrap());
    }
    // It does not know yet: for itself both are members still.
    stays.roster.replace(vec![stays.member.clone()]);
    stays.mesh.drop_strangers();
    for connection in open {
        let ConnectionError::ApplicationClosed(close) = end_of(&connection).await else { panic!() };
        assert_eq!(&close.reason[..], refusals::REMOVED);
    }
    for class in classes {
        assert!(asked(&removed, &mut stays, class).await.is_err(), "{class:?}");
        // A dial may seem to succeed: this end has done its part of the handshake before the other one has looked at its key.
        if let Ok(connection) = removed.mesh.connection(to, class).await {
            let why = end_of(&connection).await;
            assert!(refusals::is_refusal(&why), "{class:?}: {why}");
        }
    }
    let back = stays.mesh.request(removed.member.node_id(), Request::Exchange(Vec::new())).await;
    assert!(matches!(back, Err(MeshError::NotAMember(_))), "nor does anybody dial it");
}

#[tokio::test]
async fn replicas_of_another_cluster_epoch_do_not_get_through_the_handshake_and_the_machines_still_talk() {
    const RECOVERED: u64 = 0x1234_0001;
    for (ours, theirs) in [(0, RECOVERED), (RECOVERED, 0), (RECOVERED, RECOVERED + 1)] {
        let (mut here, mut there) = (side_in("here", ours), side_in("there", theirs));
        let both = vec![here.member.clone(), there.member.clone()];
        here.roster.replace(both.clone());
        there.roster.replace(both);
        let refused = asked(&here, &mut there, Class::Raft).await.err();
        let why = refused.map(|why| why.to_string()).unwrap_or_default();
        assert!(why.contains("in another cluster epoch"), "{why}");
        assert!(
            asked(&here, &mut there, Class::Control).await.is_ok(),
            "or nobody could tell of the new one"
        );
        assert!(asked(&there, &mut here, Class::Raft).await.is_err());
    }
    let (here, mut there) = (side_in("here", RECOVERED), side_in("there", RECOVERED));
    let both = vec![here.member.clone(), there.member.clone()];
    here.roster.replace(both.clone());
    there.roster.replace(both);
    assert!(asked(&here, &mut there, Class::Raft).await.is_ok());
}

#[tokio::test]
async fn a_snapshots_sender_hears_in_any_case_what_became_of_it() {
    let (mut here, there) = (side("here"), side("there"));
    let both = vec![here.member.clone(), there.member.clone()];
    here.roster.replace(both.clone());
    there.roster.replace(both);
    let to = there.member.node_id();
    let (arrived, mut took) = mpsc::unbounded_channel();
    there.mesh.give_raft_to(Box::new(move |_, bytes| arrived.send(bytes.len()).unwrap()));
    let fate = async |here: &mut Side| {
        let said =
            tokio::time::timeout(Duration::from_secs(10), here.incoming.recv()).await.unwrap().unwrap();
        let Incoming::RaftSent { to: peer, class: Class::Bulk, delivered } = said else { panic!() };
        assert_eq!(peer, to);
        delivered
    };
    here.mesh.send_raft(to, vec![7; 1 << 20], true);
    assert!(fate(&mut here).await, "all of it is there");
    assert_eq!(took.recv().await, Some(1 << 20));
    // The connection goes while it is on its way.
    let connection = there.mesh.0.links.used((here.member.node_id(), Class::Bulk)).unwrap();
    let before = connection.stats().udp_rx.bytes;
    here.mesh.send_raft(to, vec![7; 128 << 20], true);
    let begun = async {
        while connection.stats().udp_rx.bytes < before + (1 << 20) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), begun).await.unwrap();
    connection.close(quinn::VarInt::from_u32(9), b"broken");
    assert!(!fate(&mut here).await);
    assert!(took.try_recv().is_err(), "a part is nothing");
    // It is nobody's member any more.
    here.roster.replace(vec![here.member.clone()]);
    here.mesh.send_raft(to, vec![7; 100], true);
    assert!(!fate(&mut here).await);
}
