//! Asking the others to be taken back.
//!
//! Decides from a round of answers what comes next; the driver asks everybody once a second. It asks by the old key, which is on the
//! member list, and where nobody answers to that by the new one: the leader may have done it, and its answer been lost.

use std::time::Duration;

use tokio::sync::mpsc;
use tracing::debug;

use super::RebuildError;
use crate::clock;
use crate::credential::Credential;
use crate::identity::Identity;
use crate::members::{Member, Roster, id_of_key};
use crate::mesh::wire::{JoinAnswer, Request, Response};
use crate::mesh::{Mesh, MeshError};
use crate::pki;
use crate::timing;

/// What one member said.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Heard {
    /// Not reached, or it does not know this key.
    Nothing,
    /// It does not lead.
    Elsewhere,
    /// The leader wants to hear first whether another machine runs as this member.
    NotYet,
    Refused(String),
    Doubled(String),
    Welcome(JoinAnswer),
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Next {
    Again,
    /// Nobody knows this key: ask by the other one.
    ByTheOtherKey,
    GiveUp,
    Refused(String),
    Doubled(String),
    Welcome(JoinAnswer),
}

/// The rule. `asked_ms`: for how long nobody has said anything that leads on.
fn next(asked_ms: u64, heard: &[Heard]) -> Next {
    for word in heard {
        match word {
            Heard::Doubled(places) => return Next::Doubled(places.clone()),
            Heard::Refused(why) => return Next::Refused(why.clone()),
            Heard::Welcome(answer) => return Next::Welcome(answer.clone()),
            Heard::NotYet => return Next::Again,
            Heard::Nothing | Heard::Elsewhere => {}
        }
    }
    match () {
        () if asked_ms >= timing::TAKEN_BACK.as_millis() as u64 => Next::GiveUp,
        () if heard.iter().all(|word| *word == Heard::Nothing) => Next::ByTheOtherKey,
        () => Next::Again,
    }
}

/// Asks until there is an answer.
pub(super) async fn ask(
    identity: &Identity,
    key: &str,
    others: &[Member],
    why: &str,
) -> Result<Identity, RebuildError> {
    let wish = Request::Replace {
        signing_request: pki::signing_request(key)?,
        life: clock::random_u64(),
        place: crate::doubles::place(others),
        why: why.to_owned(),
    };
    let mut keys = [identity.clone(), by_new_key(identity, key)?];
    let mut last_word = clock::millis();
    loop {
        let mesh = open(&keys[0], others).await?;
        loop {
            let heard = round(&mesh, others, &wish).await;
            if heard.contains(&Heard::NotYet) {
                last_word = clock::millis();
            }
            match next(clock::millis().saturating_sub(last_word), &heard) {
                Next::Again => tokio::time::sleep(Duration::from_secs(1)).await,
                Next::ByTheOtherKey => break,
                next => {
                    let answer = answered(next, identity, key);
                    mesh.shut().await;
                    return answer;
                }
            }
        }
        mesh.shut().await;
        keys.swap(0, 1);
    }
}

fn answered(next: Next, identity: &Identity, key: &str) -> Result<Identity, RebuildError> {
    let nonsense = |error: serde_json::Error| RebuildError::Answer(error.to_string());
    match next {
        Next::Welcome(JoinAnswer::Welcome {
            cluster,
            epoch,
            certificate,
            ca_certificate,
            member,
            members,
            ..
        }) if cluster == identity.cluster => Ok(Identity {
            cluster,
            epoch,
            member: serde_json::from_str(&member).map_err(nonsense)?,
            key: key.to_owned(),
            certificate,
            ca_certificate,
            known: serde_json::from_str(&members).map_err(nonsense)?,
        }),
        Next::Welcome(JoinAnswer::Refused(why)) | Next::Refused(why) => Err(RebuildError::Refused(why)),
        Next::Doubled(places) => Err(RebuildError::Doubled(places)),
        Next::GiveUp => Err(RebuildError::NoLeader(timing::TAKEN_BACK.as_secs())),
        Next::Welcome(_) | Next::Again | Next::ByTheOtherKey => {
            Err(RebuildError::Answer("another cluster's".into()))
        }
    }
}

/// This machine as it will be, for members that know it so already: between members the key counts, and nothing else of a certificate.
fn by_new_key(identity: &Identity, key: &str) -> Result<Identity, RebuildError> {
    let certificate = pki::own_certificate(key)?;
    let hash = pki::key_hash(&pki::certificate_der(&certificate)?)?;
    let member = Member { id: id_of_key(&hash), key: pki::hex(&hash), ..identity.member.clone() };
    Ok(Identity { member, key: key.to_owned(), certificate, ..identity.clone() })
}

/// A mesh of its own for the question. The port may be on its way back from the mesh before.
async fn open(identity: &Identity, others: &[Member]) -> Result<Mesh, RebuildError> {
    let credential = Credential::new(identity)?;
    let roster = Roster::default();
    roster.replace(others.iter().chain([&identity.member]).cloned().collect());
    let tries = 100;
    for attempt in 0..=tries {
        // What comes in is nobody's: pings are answered by the mesh itself.
        let (incoming, _) = mpsc::channel(1);
        match Mesh::start(identity, &credential, roster.clone(), incoming) {
            Err(MeshError::Listen { .. }) if attempt < tries => {
                tokio::time::sleep(timing::RETRY_PAUSE).await;
            }
            opened => return Ok(opened?),
        }
    }
    Err(RebuildError::Alone)
}

#[expect(clippy::disallowed_methods, reason = "driver: all of them are waited for here")]
async fn round(mesh: &Mesh, others: &[Member], wish: &Request) -> Vec<Heard> {
    let mut asked = tokio::task::JoinSet::new();
    for other in others {
        let (mesh, to, wish) = (mesh.clone(), other.node_id(), wish.clone());
        asked.spawn(async move { (to, mesh.request_for(to, wish, timing::LEADER_ANSWER).await) });
    }
    let mut heard = Vec::new();
    while let Some(answer) = asked.join_next().await {
        heard.push(match answer {
            Ok((_, Ok(Response::Admitted(answer)))) => Heard::Welcome(answer),
            Ok((_, Ok(Response::Doubled(places)))) => Heard::Doubled(places),
            Ok((_, Ok(Response::Refused(why)))) => Heard::Refused(why),
            Ok((_, Ok(Response::NotYet))) => Heard::NotYet,
            Ok((_, Ok(_))) => Heard::Elsewhere,
            Ok((to, Err(error))) => {
                debug!(%to, %error, "not reached");
                Heard::Nothing
            }
            Err(_) => Heard::Nothing,
        });
    }
    heard
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: u64 = 1_000;
    const LATE: u64 = timing::TAKEN_BACK.as_millis() as u64;

    #[test]
    fn the_leaders_word_counts_whoever_else_says_something() {
        let refused = Heard::Refused("no".into());
        assert_eq!(next(SOON, &[Heard::Elsewhere, refused.clone()]), Next::Refused("no".into()));
        assert_eq!(next(LATE, &[Heard::Nothing, refused]), Next::Refused("no".into()));
        let welcome = JoinAnswer::Refused("stands for any".into());
        let heard = [Heard::Elsewhere, Heard::Welcome(welcome.clone())];
        assert_eq!(next(SOON, &heard), Next::Welcome(welcome));
        let doubled = [Heard::NotYet, Heard::Doubled("a and b".into())];
        assert_ne!(next(SOON, &doubled), Next::GiveUp);
    }

    #[test]
    fn who_is_told_to_wait_waits_and_who_hears_of_no_leader_gives_up_in_the_end() {
        assert_eq!(next(SOON, &[Heard::Elsewhere, Heard::NotYet]), Next::Again);
        assert_eq!(next(SOON, &[Heard::Elsewhere, Heard::Nothing]), Next::Again);
        assert_eq!(next(LATE, &[Heard::Elsewhere, Heard::Nothing]), Next::GiveUp);
    }

    #[test]
    fn where_nobody_knows_this_key_the_other_one_is_tried() {
        assert_eq!(next(SOON, &[Heard::Nothing, Heard::Nothing]), Next::ByTheOtherKey);
        assert_eq!(next(LATE, &[Heard::Nothing, Heard::Nothing]), Next::GiveUp);
    }
}
