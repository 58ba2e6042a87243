//! How long planning takes. Run with `--no-capture` to see the figures; the bounds are loose, for a debug build.

use std::time::Duration;

use super::bed::Bed;

#[expect(clippy::disallowed_methods, reason = "a measurement")]
fn timed<T>(what: &str, work: impl FnOnce() -> T) -> (T, Duration) {
    let start = std::time::Instant::now();
    let result = work();
    println!("{what}: {:?}", start.elapsed());
    (result, start.elapsed())
}

#[test]
fn planning_scales_with_the_pods() {
    for (pods, nodes) in [(1, 3), (30, 3), (1_000, 50)] {
        let names: Vec<String> = (0..nodes).map(|number| format!("node-{number:02}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut bed = Bed::new(&names);
        bed.deployment("web", pods);
        let (batches, first) = timed(&format!("{pods} pods on {nodes} nodes, first plan"), || bed.plan());
        assert!(first < Duration::from_secs(5));
        let parts: usize = batches.iter().map(|batch| batch.transaction.ops.len()).sum();
        batches.into_iter().for_each(|batch| assert!(bed.apply(batch)));
        let (more, _) = timed("  the rest, with the store", || bed.settle());
        println!("  {parts} writes in the first round, {more} transactions more");
        assert_eq!(bed.active().len(), pods as usize);
        let even = bed
            .spread()
            .into_values()
            .all(|count| count == (pods as usize).div_ceil(nodes) || pods < nodes as i64);
        assert!(even, "{:?}", bed.spread());
        bed.nodes_work();
        timed("  all become ready", || bed.settle());
        timed("  controllers begin anew", || super::super::Control::new(&bed.view(), 3));
    }
}
