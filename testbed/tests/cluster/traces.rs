//! What a host holds, as one text that can be compared: pods that are gone must not show in it.

use testbed::Host;

/// Processes, mounts, pinned namespaces, cgroups, interfaces, routes, addresses and files below /run and /var/lib.
/// Blobs and unpacked layers belong to images, names that change with time belong to nobody.
const LOOK: &str = r#"
for p in /proc/[0-9]*; do read -r name < $p/comm && echo "process $name"; done 2>/dev/null
while read -r _ target _; do echo "mount $target"; done < /proc/mounts
ip -o link | while read -r _ name _; do echo "interface ${name%%@*}"; done
ip route | while read -r route; do echo "route $route"; done
find /sys/fs/cgroup/*"$1" -mindepth 1 -type d 2>/dev/null
find /run/skein /var/lib/skein/pods /var/lib/skein/staging 2>/dev/null
true # what vanishes under find's eyes is no failure
"#;

/// Sorted lines, all that is there now.
pub fn traces(host: &Host) -> Vec<String> {
    let parent = host.cgroup_parent();
    let text = host.ok(["sh", "-c", LOOK, "look", &parent]).unwrap();
    let mut lines: Vec<String> = text.lines().map(String::from).collect();
    lines.sort();
    lines
}

/// What is in the one and not in the other, for a failing test's message.
pub fn more(now: &[String], before: &[String]) -> String {
    let mut left = before.to_vec();
    let new = now.iter().filter(|line| match left.iter().position(|known| known == *line) {
        Some(at) => {
            left.remove(at);
            false
        }
        None => true,
    });
    new.cloned().collect::<Vec<_>>().join("\n")
}
