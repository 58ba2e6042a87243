//! Memory, processes, CPU.

use runtime::state::ExitReason;

use crate::harness::on_host;

#[test]
fn more_memory_than_allowed_is_an_oom_kill() {
    on_host(async |host| {
        let limit = |spec: &mut runtime::spec::ContainerSpec| {
            spec.resources.memory_limit_bytes = Some(16 << 20);
        };
        let (_, exit) = host.output("p1", limit, "exec tail /dev/zero").await;
        assert_eq!((exit.code, exit.oom_killed, exit.reason), (137, true, ExitReason::OomKilled));
        let (_, exit) = host.output("p2", limit, "tail /dev/zero; exit 0").await;
        assert_eq!((exit.code, exit.reason), (0, ExitReason::Completed), "the main process lived on");
    });
}

#[test]
fn more_processes_than_allowed_are_refused() {
    on_host(async |host| {
        let script = "for i in $(seq 50); do sleep 5 & done; echo all";
        let (log, exit) = host.output("p1", |spec| spec.resources.pids_limit = Some(10), script).await;
        assert!(log.contains("can't fork") && !log.contains("all"), "{log}");
        assert_ne!(exit.code, 0);
    });
}

#[test]
fn cpu_and_scores_reach_the_kernel_clamped() {
    on_host(async |host| {
        let change = |spec: &mut runtime::spec::ContainerSpec| {
            spec.resources.cpu_shares = Some(512);
            spec.resources.cpu_quota_millis = Some(250);
            spec.resources.oom_score_adj = Some(-999);
        };
        let uid = host.pod("p1").await;
        let mut spec = host.shell("main", "exec sleep 100");
        change(&mut spec);
        let started = host.runtime().start_container(&uid, spec).await.unwrap();
        let cgroup = format!("{}/podp1/main", host.config.cgroup_parent);
        let read =
            |file: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/cpu{cgroup}/{file}")).unwrap();
        if std::path::Path::new("/sys/fs/cgroup/cpu").exists() {
            assert_eq!((read("cpu.shares").trim(), read("cpu.cfs_quota_us").trim()), ("512", "25000"));
        }
        let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", started.pid)).unwrap();
        let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        assert_eq!(score, own, "as low as we may, no lower");
    });
}
