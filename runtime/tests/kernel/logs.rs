//! Reading logs: whole, tail, since, limits, follow across rotations.

use runtime::LogOptions;

use crate::harness::{container, on_host};

#[test]
fn following_loses_nothing_across_rotations_and_ends_with_the_container() {
    on_host(async |host| {
        host.kill_agent();
        host.config.log_max_bytes = 20_000;
        host.config.log_max_files = 3;
        host.open().await.unwrap();
        let uid = host.pod("p1").await;
        let script = "for i in $(seq 3000); do echo line $i; test $((i % 50)) = 0 && usleep 20000; done";
        host.runtime().start_container(&uid, host.shell("main", script)).await.unwrap();
        let follow = LogOptions { follow: true, ..LogOptions::default() };
        let text = host.log_with(&uid, "main", follow).await;
        let expected: String = (1..=3000).map(|i| format!("line {i}\n")).collect();
        assert!(text == expected, "{} lines", text.lines().count());
        let dir = host.config.data.join("pods/p1/logs/main");
        let sizes: Vec<u64> =
            std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.metadata().unwrap().len()).collect();
        assert!(sizes.len() == 3 && sizes.iter().all(|size| *size <= 20_000), "{sizes:?}");
        let left = host.log(&uid, "main").await;
        assert!(left.ends_with("line 2999\nline 3000\n") && left.len() < expected.len());
        let tail = LogOptions { tail: Some(2), ..LogOptions::default() };
        assert_eq!(host.log_with(&uid, "main", tail).await, "line 2999\nline 3000\n");
    });
}

#[test]
fn since_limit_and_long_lines() {
    on_host(async |host| {
        let script = "head -c 40000 /dev/zero | tr '\\0' x; echo; usleep 200000; printf last";
        let uid = host.pod("p1").await;
        host.run(&uid, host.shell("main", &script.replace("tr '\\0' x", "cat"))).await;
        let mut lines = host.runtime().logs(&uid, &container("main"), LogOptions::default()).unwrap();
        let mut all = Vec::new();
        while let Some(line) = lines.recv().await {
            all.push(line);
        }
        let partial: Vec<bool> = all.iter().map(|line| line.partial).collect();
        assert_eq!(partial, [true, true, false, false]);
        assert_eq!(all.iter().map(|line| line.text.len()).sum::<usize>(), 40_004);
        let since = LogOptions { since: Some(all[3].time), ..LogOptions::default() };
        assert_eq!(host.log_with(&uid, "main", since).await, "last\n");
        let limit = LogOptions { limit_bytes: Some(100), ..LogOptions::default() };
        assert_eq!(host.log_with(&uid, "main", limit).await.len(), 100);
    });
}
