//! Going on after the majority of the voters is lost for good: `skein cluster recover`.
//!
//! Decides, from what the survivors say, whether there is anything to recover, who has the newest log, and what an operator must
//! declare destroyed first. It must not touch a store: that is done at the next start ([`carry_out`]), from a written order, so that a
//! power cut in the middle changes nothing. Old members are brought over by [`bring_over`].
//! A survivor that voted opens the keyring as before; after one that never did it is opened with the recovery key (`crate::keyring`).

pub mod bring_over;
pub mod carry_out;
pub mod survey;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Where the audit of recoveries is kept; the new epoch's number follows.
pub const AUDIT: &str = "s/recovered/";

/// The cluster epoch after `epoch`: counted in the upper half, with random digits below. Two recoveries that could not see each
/// other so make two epochs, whose stores and machines never take each other for their own.
pub fn next_epoch(epoch: u64, random: u64) -> u64 {
    (number(epoch) + 1) << 32 | random & 0xffff_ffff
}

/// How many recoveries lie behind an epoch.
pub fn number(epoch: u64) -> u64 {
    // The first binaries counted without digits below.
    if epoch >> 32 == 0 { epoch } else { epoch >> 32 }
}

/// What a survivor says of its store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survivor {
    pub name: String,
    /// The cluster epoch that it belongs to.
    pub epoch: u64,
    /// It hears a leader that is confirmed by a majority.
    pub led: bool,
    /// Term and index of the last entry of its log.
    pub last: (u64, u64),
    /// What it knows to be confirmed.
    pub commit: u64,
}

/// Nothing is done, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    #[error("nothing to recover: {0} hears a leader that a majority confirms; see 'skein cluster status'")]
    Led(String),
    #[error(
        "nothing to recover: {0} of {1} voters answer, which is a majority; they elect a leader by themselves within a second or two"
    )]
    Majority(usize, usize),
    #[error(
        "these voters cannot be reached: {0}. One that still runs somewhere would be a second cluster: make sure that each is destroyed or switched off for good, then add {1}"
    )]
    Unreached(String, String),
    #[error("{0} was declared lost and answers: leave it out of --lost")]
    Answers(String),
    #[error("{0} is no member: 'skein node ls' lists them")]
    Unknown(String),
    #[error("{0} is in cluster epoch {1} already: this machine joins it by itself within seconds")]
    NewerEpoch(String, u64),
}

/// What would be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The survivor whose log is taken.
    pub best: Survivor,
    /// Entries at its log's end that were not confirmed as far as it knows: they are kept, and may be news to clients.
    pub unconfirmed: u64,
    /// All that answered.
    pub survivors: Vec<Survivor>,
    /// Members that the new epoch begins without.
    pub lost: Vec<String>,
}

/// Judges a loss. `voters` and `members` are names, as this machine knows them; in the midst of a change of voters there are two
/// sets of them, and each needs its majority. `epoch` is this machine's.
pub fn judge(
    epoch: u64,
    voters: &[Vec<String>],
    members: &[String],
    survivors: &[Survivor],
    lost: &[String],
) -> Result<Verdict, RecoverError> {
    if let Some(newer) = survivors.iter().find(|survivor| survivor.epoch > epoch) {
        return Err(RecoverError::NewerEpoch(newer.name.clone(), number(newer.epoch)));
    }
    let same: Vec<&Survivor> = survivors.iter().filter(|survivor| survivor.epoch == epoch).collect();
    if let Some(led) = same.iter().find(|survivor| survivor.led) {
        return Err(RecoverError::Led(led.name.clone()));
    }
    if let Some(unknown) = lost.iter().find(|name| !members.contains(name)) {
        return Err(RecoverError::Unknown(unknown.clone()));
    }
    let answers = |name: &String| same.iter().any(|survivor| survivor.name == *name);
    if let Some(alive) = lost.iter().find(|name| answers(name)) {
        return Err(RecoverError::Answers(alive.clone()));
    }
    let up = |set: &[String]| set.iter().filter(|voter| answers(voter)).count();
    let weakest = voters.iter().min_by_key(|set| up(set) * 2 > set.len()).map_or(&[][..], Vec::as_slice);
    if up(weakest) * 2 > weakest.len() {
        return Err(RecoverError::Majority(up(weakest), weakest.len()));
    }
    let all: BTreeSet<&String> = voters.iter().flatten().collect();
    let undeclared: Vec<&str> = all
        .into_iter()
        .filter(|voter| !answers(voter) && !lost.contains(voter))
        .map(String::as_str)
        .collect();
    if !undeclared.is_empty() {
        let flags: Vec<String> = undeclared.iter().map(|name| format!("--lost {name}")).collect();
        return Err(RecoverError::Unreached(undeclared.join(", "), flags.join(" ")));
    }
    let best = same.iter().max_by(|a, b| (a.last, &b.name).cmp(&(b.last, &a.name)));
    let Some(best) = best else { return Err(RecoverError::Majority(up(weakest), weakest.len())) };
    Ok(Verdict {
        best: (*best).clone(),
        unconfirmed: best.last.1.saturating_sub(best.commit),
        survivors: survivors.to_vec(),
        lost: lost.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survivor(name: &str, last: (u64, u64)) -> Survivor {
        Survivor { name: name.into(), epoch: 0, led: false, last, commit: 90 }
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_string()).collect()
    }

    fn judged(survivors: &[Survivor], lost: &[&str]) -> Result<Verdict, RecoverError> {
        judge(0, &[names(&["a", "b", "c"])], &names(&["a", "b", "c", "d"]), survivors, &names(lost))
    }

    #[test]
    fn the_newest_log_wins_also_a_non_voters() {
        let found = [survivor("a", (3, 100)), survivor("d", (3, 104))];
        let verdict = judged(&found, &["b", "c"]).unwrap();
        assert_eq!((verdict.best.name.as_str(), verdict.unconfirmed), ("d", 14));
        let found = [survivor("a", (4, 95)), survivor("d", (3, 104))];
        assert_eq!(
            judged(&found, &["b", "c"]).unwrap().best.name,
            "a",
            "a later term counts more than a longer log"
        );
    }

    #[test]
    fn every_voter_that_cannot_be_reached_must_be_declared_destroyed() {
        let refused = judged(&[survivor("a", (3, 100))], &["b"]).unwrap_err().to_string();
        assert!(refused.contains("cannot be reached: c.") && refused.contains("--lost c"), "{refused}");
    }

    #[test]
    fn in_the_midst_of_a_change_of_voters_both_sets_count() {
        let found = [survivor("d", (3, 100)), survivor("e", (3, 100))];
        let members = names(&["a", "b", "c", "d", "e"]);
        let sets = [names(&["c", "d", "e"]), names(&["a", "b", "c"])];
        let judged = |lost: &[&str]| judge(0, &sets, &members, &found, &names(lost));
        let refused = judged(&["c"]).unwrap_err();
        assert!(
            matches!(refused, RecoverError::Unreached(..)),
            "a majority of the new ones alone elects nobody: {refused}"
        );
        assert_eq!(judged(&["a", "b", "c"]).unwrap().best.name, "d");
    }

    #[test]
    fn two_recoveries_that_do_not_see_each_other_make_two_epochs() {
        let (one, other) = (next_epoch(3 << 32 | 9, 1), next_epoch(3 << 32 | 9, 2));
        assert_ne!(one, other);
        assert_eq!((number(one), number(other)), (4, 4));
    }

    #[test]
    fn a_cluster_that_works_or_could_is_left_alone() {
        let mut led = survivor("d", (3, 100));
        led.led = true;
        assert_eq!(judged(&[led], &["b", "c"]), Err(RecoverError::Led("d".into())));
        let two = [survivor("a", (3, 100)), survivor("b", (3, 100))];
        assert_eq!(judged(&two, &["c"]), Err(RecoverError::Majority(2, 3)));
    }

    #[test]
    fn who_was_declared_lost_and_answers_or_is_unknown_is_named() {
        let found = [survivor("a", (3, 100))];
        assert_eq!(judged(&found, &["a", "b", "c"]), Err(RecoverError::Answers("a".into())));
        assert_eq!(judged(&found, &["b", "x"]), Err(RecoverError::Unknown("x".into())));
    }

    #[test]
    fn what_was_recovered_once_is_not_recovered_again_by_who_was_left_behind() {
        let mut ahead = survivor("d", (9, 200));
        ahead.epoch = next_epoch(0, 7);
        assert_eq!(
            judged(&[survivor("a", (3, 100)), ahead], &["b", "c"]),
            Err(RecoverError::NewerEpoch("d".into(), 1))
        );
    }
}
