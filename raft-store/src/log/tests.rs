//! The log on a simulated disk: torn tails, corruption, crashes at every sync.

use super::recover::{OpenError, recover};
use super::*;
use crate::ids::{ClusterId, NodeId};
use crate::sim_disk::MemDisk;
use proptest::prelude::*;

const OURS: Identity = Identity { cluster: ClusterId([1; 16]), node: NodeId(9) };
const SEGMENT: u64 = 2 << 10;

fn entry(index: u64, term: u64, size: usize) -> Entry {
    Entry { index, term, data: vec![index as u8; size], ..Entry::default() }
}

fn batch(commit: u64, entries: Vec<Entry>) -> Batch {
    Batch { hard_state: HardState { term: 2, vote: 9, commit }, entries }
}

/// A log of a first node with entries 2 to `last`, one batch each.
fn log_with(disk: &MemDisk, last: u64) -> Log<MemDisk> {
    let mut log = Log::create(disk.clone(), OURS, SEGMENT, 5, Some(&State::first(NodeId(9)))).unwrap();
    for index in 2..=last {
        log.append(batch(index - 1, vec![entry(index, 2, 40)])).unwrap();
    }
    log
}

fn reopen(disk: &MemDisk) -> Result<recover::Found, OpenError> {
    recover(&mut disk.clone(), &OURS)
}

fn indexes(found: &recover::Found) -> Vec<u64> {
    found.entries.from(0).map(|entry| entry.index).collect()
}

fn newest_segment(disk: &MemDisk) -> String {
    disk.list().unwrap().into_iter().filter(|name| segment::ordinal(name).is_some()).max().unwrap()
}

#[test]
fn what_was_persisted_is_found_again() {
    let disk = MemDisk::new();
    drop(log_with(&disk, 60));
    disk.crash(1);
    let found = reopen(&disk).unwrap();
    assert_eq!(indexes(&found), (2..=60).collect::<Vec<_>>());
    assert_eq!(found.hard_state, HardState { term: 2, vote: 9, commit: 59 });
    assert!(found.segments.len() > 2, "several segments");
    assert_eq!(found.cut, None);
}

#[test]
fn a_replaced_tail_is_found_replaced() {
    let disk = MemDisk::new();
    let mut log = log_with(&disk, 10);
    log.append(batch(9, vec![entry(10, 3, 10), entry(11, 3, 10)])).unwrap();
    drop(log);
    let found = reopen(&disk).unwrap();
    assert_eq!(found.last, (11, 3));
    assert_eq!(found.entries.from(0).find(|entry| entry.index == 10).map(|entry| entry.term), Some(3));
}

#[test]
fn a_torn_last_batch_is_cut_wherever_it_tears() {
    for seed in 0..300 {
        let disk = MemDisk::new();
        let mut log = log_with(&disk, 5);
        disk.fail_sync(Some(0));
        assert!(log.append(batch(5, vec![entry(6, 2, 1_200)])).is_err());
        disk.fail_sync(None);
        disk.crash(seed);
        let found = reopen(&disk).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(found.last == (5, 2) || found.last == (6, 2), "seed {seed}: {:?}", found.last);
        // And the cut log can be continued.
        let mut log = Log::start(disk.clone(), OURS, SEGMENT, 6, found).unwrap();
        let next = log.last.0 + 1;
        log.append(batch(5, vec![entry(next, 2, 10)])).unwrap();
        drop(log);
        assert_eq!(reopen(&disk).unwrap().last, (next, 2), "seed {seed}");
    }
}

#[test]
fn a_value_that_looks_like_a_batch_does_not_pass_for_one() {
    let disk = MemDisk::new();
    let mut log = log_with(&disk, 5);
    // The best an outsider can do: a batch that is right but for the salt.
    let (forged, _) = batch(5, vec![entry(7, 2, 10)]).encode(99, &log.chain, 0);
    let data: Vec<u8> = forged.iter().copied().cycle().take(forged.len() * 8).collect();
    let (bytes, _) = batch(5, vec![Entry { data, ..entry(6, 2, 0) }]).encode(
        log.next_sequence,
        &log.chain,
        log.current().salt,
    );
    let name = newest_segment(&disk);
    // Only the later pages landed.
    let mut torn = bytes;
    torn[..64].fill(0);
    log.disk.write_at(&name, log.end, &torn).unwrap();
    drop(log);
    assert_eq!(reopen(&disk).unwrap().last, (5, 2));
}

#[test]
fn damage_before_a_valid_batch_is_corruption_and_changes_nothing() {
    let disk = MemDisk::new();
    drop(log_with(&disk, 8));
    let name = newest_segment(&disk);
    let before = disk.read(&name).unwrap();
    let first = segment::HEADER_BYTES;
    for offset in [first, first + 5, first + 20, first + 30, first + 70, first + 100] {
        disk.flip(&name, offset, 0x40);
        let error = reopen(&disk).err().unwrap();
        assert!(matches!(&error, OpenError::Corrupt { file, .. } if *file == name), "{offset}: {error}");
        assert!(error.to_string().contains("skein node reset"), "{error}");
        disk.flip(&name, offset, 0x40);
        assert_eq!(disk.read(&name).unwrap(), before);
    }
}

#[test]
fn a_missing_segment_is_corruption() {
    let disk = MemDisk::new();
    drop(log_with(&disk, 100));
    let mut names: Vec<String> =
        disk.list().unwrap().into_iter().filter(|name| segment::ordinal(name).is_some()).collect();
    names.sort();
    for name in &names[..names.len() - 1] {
        let image = disk.image();
        image.clone().remove(name).unwrap();
        assert!(matches!(reopen(&image), Err(OpenError::Corrupt { .. })), "without {name}");
    }
}

fn save_snapshot(log: &mut Log<MemDisk>, state: &State, commit: u64) -> Result<(), LogError> {
    log.begin_snapshot(state, commit)?;
    while log.is_writing_snapshot() {
        log.go_on(100, true)?;
    }
    Ok(())
}

#[test]
fn a_rotten_snapshot_is_never_used() {
    let disk = MemDisk::new();
    drop(log_with(&disk, 5));
    let name = snapfile::name(1);
    for offset in 0..disk.read(&name).unwrap().len() {
        disk.flip(&name, offset, 4);
        assert!(reopen(&disk).is_err(), "flipped at {offset}");
        disk.flip(&name, offset, 4);
    }
    assert!(reopen(&disk).is_ok());
}

fn is_read_back_wrong(done: &Result<(), LogError>, name: &str) -> bool {
    matches!(done, Err(LogError::ReadBack { file }) if file == name)
}

#[test]
fn a_snapshot_that_reads_back_differently_is_not_put_into_place() {
    let disk = MemDisk::new();
    let mut log = log_with(&disk, 5);
    let state = State { applied_index: 5, applied_term: 2, ..State::first(NodeId(9)) };
    log.begin_snapshot(&state, 5).unwrap();
    log.go_on(16, true).unwrap();
    assert!(log.is_writing_snapshot() && disk.flip(snapfile::TEMPORARY, snapfile::HEADER_BYTES + 3, 4));
    let done = loop {
        match log.go_on(16, true) {
            Ok(()) if log.is_writing_snapshot() => {}
            done => break done,
        }
    };
    assert!(is_read_back_wrong(&done, snapfile::TEMPORARY), "{done:?}");
    assert_eq!(reopen(&disk).unwrap().snapshot_index, 1, "the one before it is still there");
}

#[test]
fn a_fed_state_that_reads_back_differently_is_not_used() {
    for pieces_checked in [false, true] {
        let disk = MemDisk::new();
        let mut log = log_with(&disk, 5);
        let step = if pieces_checked { 100 } else { u64::MAX };
        assert!(log.begin_fed(9).unwrap());
        assert!(log.write_fed(&[7; 90], u64::MAX).unwrap());
        assert!(disk.flip(fedfile::TEMPORARY, snapfile::HEADER_BYTES + 3, 4));
        let done = log.write_fed(&[7; 90], step).map(drop);
        assert_eq!(is_read_back_wrong(&done, fedfile::TEMPORARY), pieces_checked);
        if !pieces_checked {
            let done = log.end_fed();
            assert!(is_read_back_wrong(&done, fedfile::TEMPORARY), "{done:?}");
        }
    }
}

#[test]
fn losing_batches_that_a_snapshot_saw_is_corruption() {
    let disk = MemDisk::new();
    let mut log = log_with(&disk, 5);
    let early = disk.image();
    let state = State { applied_index: 5, applied_term: 2, ..State::first(NodeId(9)) };
    log.append(batch(5, vec![entry(6, 2, 40)])).unwrap();
    save_snapshot(&mut log, &state, 5).unwrap();
    let newer = disk.read(&snapfile::name(5)).unwrap();
    let mut mixed = early.clone();
    mixed.create(&snapfile::name(5), 0).unwrap();
    mixed.write_at(&snapfile::name(5), 0, &newer).unwrap();
    assert!(matches!(reopen(&mixed), Err(OpenError::Corrupt { .. })));
}

#[test]
fn a_big_snapshot_that_is_not_needed_any_more_goes_bit_by_bit() {
    const BIG: u64 = 5 * snapfile::AT_ONCE / 2;
    let disk = MemDisk::new();
    drop(log_with(&disk, 5));
    // Left by a start before, and by a crash in the midst of writing one.
    for name in ["snap-0000000000000000", snapfile::TEMPORARY] {
        disk.clone().create(name, BIG).unwrap();
    }
    let found = reopen(&disk).unwrap();
    assert!(!disk.list().unwrap().iter().any(|name| name == snapfile::TEMPORARY), "its name is free");
    let mut log = Log::start(disk.clone(), OURS, SEGMENT, 6, found).unwrap();
    let snapshots = || disk.list().unwrap().into_iter().filter(|name| name.starts_with("snap")).count();
    assert_eq!(snapshots(), 3);
    let mut used = disk.used();
    for left in [3, 3, 2, 2, 2, 1] {
        log.go_on(100, true).unwrap();
        assert!(used - disk.used() <= snapfile::AT_ONCE, "no more than that at once");
        used = disk.used();
        assert_eq!(snapshots(), left);
    }
    let state = State { applied_index: 5, applied_term: 2, ..State::first(NodeId(9)) };
    save_snapshot(&mut log, &state, 5).unwrap();
    log.go_on(100, true).unwrap();
    assert_eq!((snapshots(), reopen(&disk).unwrap().snapshot_index), (1, 5));
}

#[test]
fn a_snapshot_keeps_ahead_of_the_log_that_grows_meanwhile() {
    let mut disk = MemDisk::new();
    let identity = Identity { cluster: ClusterId([1; 16]), node: NodeId(1) };
    let state = State::first(NodeId(1));
    let mut writing = snapfile::Writing::begin(&mut disk, &identity, &state, 0, 1_000).unwrap();
    assert_eq!(writing.pace(100, 1_000), 100, "at rest it goes on all the same");
    assert_eq!(writing.pace(100, 1_005), 100);
    assert_eq!(writing.pace(100, 1_055), 800);
    assert_eq!(writing.pace(100, 9_000), 1_600, "a step has an end");
}

/// More than is read on the caller's thread alone.
fn state_of_many(applied_index: u64) -> State {
    let many = (0..500u64).map(|n| {
        let revision = crate::ids::Revision(n);
        let key = format!("k{n:03}");
        crate::state::Entry::new(key.as_bytes(), &[7; 100], revision, revision)
    });
    State { applied_index, applied_term: 2, objects: many.collect(), ..State::first(NodeId(9)) }
}

#[test]
fn what_cannot_be_read_is_not_taken_for_damage() {
    // Of a small state all reads come one after the other, of a big one the log's come beside it.
    let mut files = std::collections::BTreeSet::new();
    for state in [State { applied_index: 30, applied_term: 2, ..State::first(NodeId(9)) }, state_of_many(30)]
    {
        let disk = MemDisk::new();
        let mut log = log_with(&disk, 40);
        save_snapshot(&mut log, &state, 40).unwrap();
        drop(log);
        let before = disk.image();
        let same = |name: &String| disk.read(name).unwrap() == before.read(name).unwrap();
        for reads in 0.. {
            disk.fail_read(Some(reads));
            let found = reopen(&disk);
            let failed = disk.failed_at().is_some();
            disk.fail_read(None);
            if !failed {
                assert_eq!(found.unwrap().last, (40, 2), "no read failed, so all are tried");
                break;
            }
            match found {
                Err(OpenError::Disk(error)) => files.insert(error.file),
                other => panic!("read {reads}: {:?}", other.err()),
            };
            assert!(disk.list().unwrap().iter().all(same), "nothing was changed");
        }
    }
    assert!(files.iter().any(|file| file.starts_with("snap-")), "{files:?}");
    assert!(files.iter().any(|file| segment::ordinal(file).is_some()), "{files:?}");
}

#[test]
fn how_big_the_snapshot_is_is_known_after_a_start() {
    let disk = MemDisk::new();
    let mut log = log_with(&disk, 5);
    let state = state_of_many(5);
    save_snapshot(&mut log, &state, 5).unwrap();
    let length = log.snapshot_bytes;
    assert!(length > 50_000);
    log.append(batch(5, vec![entry(6, 2, 2_000)])).unwrap();
    assert!(!log.wants_snapshot(1_000, 6), "an eighth of it is more");
    drop(log);
    let found = reopen(&disk).unwrap();
    assert_eq!(found.snapshot_bytes, length);
    let log = Log::start(disk.clone(), OURS, SEGMENT, 6, found).unwrap();
    assert!(!log.wants_snapshot(1_000, 6), "and after a start");
}

#[test]
fn segments_that_the_snapshot_covers_are_not_read_and_go_later() {
    let disk = MemDisk::new();
    let mut log = log_with(&disk, 60);
    let state = State { applied_index: 55, applied_term: 2, ..State::first(NodeId(9)) };
    save_snapshot(&mut log, &state, 60).unwrap();
    let covered = log.segments.iter().zip(&log.segments[1..]).filter(|(_, next)| next.base.0 <= 55).count();
    assert!(covered > 2);
    let names: Vec<String> = log.segments.iter().map(Segment::name).collect();
    drop(log);
    for name in &names[..covered] {
        disk.flip(name, segment::HEADER_BYTES + 30, 4);
    }
    let found = reopen(&disk).unwrap();
    assert_eq!(indexes(&found), (56..=60).collect::<Vec<_>>());
    assert_eq!(found.hard_state, HardState { term: 2, vote: 9, commit: 60 });
    assert!(found.log_bytes < 3 * SEGMENT, "what is not needed does not ask for a snapshot");
    let mut log = Log::start(disk.clone(), OURS, SEGMENT, 6, found).unwrap();
    assert_eq!(log.segments.len(), names.len() + 1, "they are still known");
    for _ in 0..=covered {
        log.go_on(100, true).unwrap();
    }
    assert!(!disk.list().unwrap().contains(&names[covered - 1]));
    assert_eq!(reopen(&disk).unwrap().last, (60, 2));
    // The first that is needed is judged as ever.
    disk.flip(&names[covered], segment::HEADER_BYTES + 30, 4);
    assert!(matches!(reopen(&disk), Err(OpenError::Corrupt { .. })));
}

#[test]
fn term_and_vote_are_found_where_only_covered_segments_have_batches() {
    let disk = MemDisk::new();
    let mut log = log_with(&disk, 60);
    let state = State { applied_index: 60, applied_term: 2, ..State::first(NodeId(9)) };
    save_snapshot(&mut log, &state, 60).unwrap();
    drop(log);
    // Two starts that wrote nothing: the newest segments are empty, and the snapshot covers all others.
    for seed in [6, 7] {
        let found = reopen(&disk).unwrap();
        assert_eq!((found.hard_state.term, found.hard_state.vote, found.last), (2, 9, (60, 2)));
        drop(Log::start(disk.clone(), OURS, SEGMENT, seed, found).unwrap());
    }
    let found = reopen(&disk).unwrap();
    assert_eq!((found.hard_state.term, found.hard_state.vote, found.last), (2, 9, (60, 2)));
    assert!(found.entries.is_empty());
}

#[test]
fn a_crash_at_any_point_of_a_snapshot_loses_nothing() {
    for seed in 0..100 {
        for syncs in 0..8 {
            let disk = MemDisk::new();
            let mut log = log_with(&disk, 40);
            let state = State { applied_index: 30, applied_term: 2, ..State::first(NodeId(9)) };
            disk.fail_sync(Some(syncs));
            let _ = save_snapshot(&mut log, &state, 40);
            disk.fail_sync(None);
            drop(log);
            disk.crash(seed);
            let found = reopen(&disk).unwrap_or_else(|error| panic!("seed {seed}, {syncs} syncs: {error}"));
            assert_eq!(found.last, (40, 2));
            assert_eq!((found.hard_state.term, found.hard_state.vote), (2, 9));
        }
    }
}

#[test]
fn a_crash_at_any_point_of_creation_leaves_nothing_or_all() {
    for seed in 0..100 {
        for syncs in 0..7 {
            let disk = MemDisk::new();
            disk.fail_sync(Some(syncs));
            let made = Log::create(disk.clone(), OURS, SEGMENT, 5, Some(&State::first(NodeId(9)))).is_ok();
            disk.fail_sync(None);
            disk.crash(seed);
            match reopen(&disk) {
                Ok(found) => assert_eq!(found.last, (1, 1)),
                Err(OpenError::Empty) => {
                    assert!(!made, "seed {seed}: a made store is gone");
                    recover::expect_empty(&disk).unwrap();
                }
                Err(error) => panic!("seed {seed}, {syncs} syncs: {error}"),
            }
        }
    }
}

#[test]
fn files_of_another_cluster_node_or_version_are_refused_by_name() {
    let disk = MemDisk::new();
    drop(log_with(&disk, 5));
    let other = |identity| recover(&mut disk.clone(), &identity).err().unwrap();
    let cluster = other(Identity { cluster: ClusterId([2; 16]), ..OURS });
    assert!(matches!(cluster, OpenError::OtherCluster { .. }), "{cluster}");
    let node = other(Identity { node: NodeId(8), ..OURS });
    assert!(matches!(node, OpenError::OtherNode { .. }), "{node}");
    let name = newest_segment(&disk);
    let mut header = disk.read(&name).unwrap()[..segment::HEADER_BYTES].to_vec();
    let mut of_version = |version: u32| {
        header[8..12].copy_from_slice(&version.to_le_bytes());
        segment::seal(&mut header);
        disk.clone().write_at(&name, 0, &header).unwrap();
        reopen(&disk).err().unwrap()
    };
    let newer = of_version(3);
    assert!(matches!(newer, OpenError::NewerVersion { version: 3, .. }), "{newer}");
}

#[test]
fn a_log_of_version_1_is_read_and_gone_on_with() {
    let mut disk = MemDisk::new();
    drop(log_with(&disk, 5));
    let expected = reopen(&disk).unwrap();
    // The same batches, at multiples of eight.
    let name = newest_segment(&disk);
    let bytes = disk.read(&name).unwrap();
    let segment = Segment::decode_header(&bytes).unwrap();
    let (mut old, mut at) = (bytes[..segment::HEADER_BYTES].to_vec(), segment::HEADER_BYTES);
    while let Some(header) = batch::decode_header(&bytes[at..], segment.salt, segment.align) {
        let length = (batch::HEADER_BYTES + header.length).next_multiple_of(batch::ALIGN_1);
        old.extend_from_slice(&bytes[at..at + length]);
        at += header.span();
    }
    assert!(old.len() < at, "they are shorter");
    old[8..12].copy_from_slice(&1u32.to_le_bytes());
    segment::seal(&mut old);
    old.resize(bytes.len(), 0);
    disk.write_at(&name, 0, &old).unwrap();
    let found = reopen(&disk).unwrap();
    assert_eq!(
        (found.last, found.chain, &found.hard_state),
        (expected.last, expected.chain, &expected.hard_state)
    );
    // A torn tail is seen there, too, and what is damaged before the end.
    let mut torn = disk.image();
    let end = found.segments.last().unwrap().length;
    torn.write_at(&name, end, &[7; 24]).unwrap();
    assert_eq!(reopen(&torn).unwrap().last, expected.last);
    assert!(torn.flip(&name, segment::HEADER_BYTES + 30, 4));
    assert!(matches!(reopen(&torn).err().unwrap(), OpenError::Corrupt { .. }));
    let mut log = Log::start(disk.clone(), OURS, SEGMENT, 6, found).unwrap();
    let (index, term) = expected.last;
    log.append(batch(index, vec![entry(index + 1, term, 40)])).unwrap();
    drop(log);
    disk.lose_unsynced();
    assert_eq!(reopen(&disk).unwrap().last, (index + 1, term));
}

#[test]
fn a_failed_sync_gives_out_no_promise() {
    let disk = MemDisk::new();
    let mut log = log_with(&disk, 5);
    disk.fail_sync(Some(0));
    let error = log.append(batch(5, vec![entry(6, 2, 40)])).unwrap_err();
    assert!(matches!(error, LogError::Disk(_)));
    assert_eq!((log.last, log.hard_state.commit), ((5, 2), 4), "nothing counts as durable");
}

/// A process that ended between a write and its sync, or after one that failed, left a batch that is read and is not durable.
#[test]
fn what_was_found_is_durable_once_the_log_is_started() {
    for failed in [false, true] {
        // A batch as long as its segment leaves no tail to cut either.
        for size in [40, 3 * SEGMENT as usize] {
            let disk = MemDisk::new();
            let mut log = log_with(&disk, 5);
            let last = batch(5, vec![entry(6, 2, size)]);
            match failed {
                true => {
                    // A longer batch begins a segment of its own first, which takes three syncs.
                    disk.fail_sync(Some(if log.fits(&last) { 0 } else { 3 }));
                    log.append(last).unwrap_err();
                    disk.fail_sync(None);
                }
                false => {
                    let (bytes, _) = log.encode(last);
                    let name = log.current().name();
                    log.disk.write_at(&name, log.end, &bytes).unwrap();
                }
            }
            drop(log);
            let found = reopen(&disk).unwrap();
            assert_eq!(found.last, (6, 2), "it is read, {size} bytes");
            drop(Log::start(disk.clone(), OURS, SEGMENT, 6, found).unwrap());
            disk.crash(1);
            assert_eq!(reopen(&disk).unwrap().last, (6, 2), "and stays, {size} bytes, failed: {failed}");
        }
    }
}

#[test]
fn a_crash_at_any_point_of_a_start_loses_nothing() {
    for seed in 0..30 {
        for step in 0..20 {
            let disk = MemDisk::new();
            let mut log = log_with(&disk, 20);
            disk.fail_sync(Some(0));
            log.append(batch(20, vec![entry(21, 2, 40)])).unwrap_err();
            disk.fail_sync(None);
            drop(log);
            disk.fail_step(Some(step));
            let started =
                reopen(&disk).map(|found| Log::start(disk.clone(), OURS, SEGMENT, 6, found).map(drop));
            disk.fail_step(None);
            disk.crash(seed);
            let found = reopen(&disk).unwrap_or_else(|error| panic!("seed {seed}, step {step}: {error}"));
            let kept = if matches!(started, Ok(Ok(()))) { 21..=21 } else { 20..=21 };
            assert!(kept.contains(&found.last.0), "seed {seed}, step {step}: {:?}", found.last);
        }
    }
}

#[test]
fn a_full_disk_says_what_helps() {
    let disk = MemDisk::new();
    let mut log = log_with(&disk, 5);
    disk.set_capacity(Some(4 << 10));
    let error = (6..200).find_map(|index| log.append(batch(5, vec![entry(index, 2, 40)])).err()).unwrap();
    assert!(error.to_string().contains("free some space"), "{error}");
}

fn some_batch() -> impl Strategy<Value = Batch> {
    let entry = (any::<u64>(), any::<u64>(), proptest::collection::vec(any::<u8>(), 0..60), 0..3i32);
    let entries = proptest::collection::vec(entry, 0..4);
    (any::<(u64, u64, u64)>(), entries).prop_map(|((term, vote, commit), entries)| Batch {
        hard_state: HardState { term, vote, commit },
        entries: entries
            .into_iter()
            .map(|(index, term, data, entry_type)| Entry {
                index,
                term,
                data,
                entry_type,
                ..Entry::default()
            })
            .collect(),
    })
}

fn read_batch(bytes: &[u8], salt: u32) -> Option<(Batch, Chain)> {
    batch::decode(&batch::decode_header(bytes, salt, batch::ALIGN)?, bytes, salt)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_batch_survives_its_encoding(batch in some_batch(), sequence: u64, salt: u32) {
        let before = Chain([3; 32]);
        let (bytes, after) = batch.encode(sequence, &before, salt);
        prop_assert_eq!(bytes.len(), batch.encoded_length());
        prop_assert_eq!(read_batch(&bytes, salt), Some((batch, after)));
    }

    #[test]
    fn no_truncation_and_no_flip_of_a_batch_is_taken(batch in some_batch(), salt: u32, mask in 1..=255u8) {
        let (bytes, _) = batch.encode(4, &Chain::default(), salt);
        for length in 0..bytes.len() {
            prop_assert_eq!(read_batch(&bytes[..length], salt), None);
        }
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= mask;
            prop_assert_eq!(read_batch(&flipped, salt), None, "flipped at {}", at);
        }
    }

    #[test]
    fn no_damage_to_a_segment_yields_other_entries(at in 0usize..3_000, mask in 1..=255u8, cut in 0usize..3_000) {
        let disk = MemDisk::new();
        drop(log_with(&disk, 25));
        let names: Vec<String> = disk.list().unwrap();
        for name in names.iter().filter(|name| segment::ordinal(name).is_some()) {
            let image = disk.image();
            image.flip(name, at, mask);
            check_prefix(&image);
            let image = disk.image();
            let length = image.read(name).unwrap().len();
            image.clone().truncate(name, cut.min(length) as u64).unwrap();
            check_prefix(&image);
        }
    }
}

/// Either refused, or a prefix of what was written.
fn check_prefix(disk: &MemDisk) {
    if let Ok(found) = reopen(disk) {
        let expected = (2..).take(found.entries.len()).map(|index| entry(index, 2, 40));
        assert!(found.entries.from(0).eq(expected));
    }
}
