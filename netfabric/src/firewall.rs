//! Other programs' chains that drop our traffic: a drop anywhere beats an accept of ours.
//!
//! Decides, from nft's listing of all rules, which chains those are and which line helps. Must not change them; and
//! must not cry wolf where a rule with our name in its comment lets us through.

use serde_json::Value;

use crate::action::Condition;
use crate::desired::Desired;
use crate::net::VXLAN_PORT;
use crate::table;

/// What a rule's comment must contain for the chain to count as opened for us.
const OPENED: &str = "skein";

struct ForeignChain<'a> {
    family: &'a str,
    table: &'a str,
    name: &'a str,
    hook: &'a str,
    policy: &'a str,
}

/// One condition that names every blocking chain, or none.
pub fn blocked(items: &[Value], desired: &Desired) -> Option<Condition> {
    let blocking: Vec<String> = items
        .iter()
        .filter_map(|item| foreign_chain(item.get("chain")?))
        .filter(|chain| drops(chain, items))
        .map(|chain| describe(&chain, desired))
        .collect();
    (!blocking.is_empty()).then(|| Condition::NetworkBlocked(blocking.join("; ")))
}

fn foreign_chain(chain: &Value) -> Option<ForeignChain<'_>> {
    let text = |field: &str| chain.get(field).and_then(Value::as_str);
    let found = ForeignChain {
        family: text("family")?,
        table: text("table")?,
        name: text("name")?,
        hook: text("hook")?,
        policy: text("policy").unwrap_or("accept"),
    };
    let looked_at = matches!(found.family, "ip" | "inet") && matches!(found.hook, "forward" | "input");
    let ours = found.family == "inet" && found.table == table::NAME;
    (looked_at && !ours).then_some(found)
}

fn drops(chain: &ForeignChain<'_>, items: &[Value]) -> bool {
    let rules: Vec<&Value> =
        items.iter().filter_map(|item| item.get("rule")).filter(|rule| belongs(rule, chain)).collect();
    for rule in rules {
        let comment = rule.get("comment").and_then(Value::as_str).unwrap_or_default();
        if comment.contains(OPENED) {
            return false;
        }
        match unconditional(rule) {
            Some("accept") => return false,
            Some(_) => return true,
            None => {}
        }
    }
    chain.policy == "drop"
}

fn belongs(rule: &Value, chain: &ForeignChain<'_>) -> bool {
    let is = |field: &str, value: &str| rule.get(field).and_then(Value::as_str) == Some(value);
    is("family", chain.family) && is("table", chain.table) && is("chain", chain.name)
}

/// The verdict of a rule that every packet meets.
fn unconditional(rule: &Value) -> Option<&str> {
    let expressions = rule.get("expr")?.as_array()?;
    let verdicts =
        expressions.iter().filter_map(Value::as_object).filter(|part| !part.contains_key("counter"));
    let mut keys = verdicts.flat_map(|part| part.keys().map(String::as_str));
    let verdict = keys.next().filter(|key| matches!(*key, "accept" | "drop" | "reject"))?;
    keys.next().is_none().then_some(verdict)
}

fn describe(chain: &ForeignChain<'_>, desired: &Desired) -> String {
    let ForeignChain { family, table, name, hook, .. } = chain;
    let place = format!("{family} {table} {name}");
    let insert = |what: &str| format!(r#"insert rule {place} {what} accept comment "{OPENED}""#);
    let (traffic, lines): (&str, Vec<String>) = if *hook == "forward" {
        let cidrs = desired.networks.iter().map(|network| network.cidr);
        let both = cidrs.flat_map(|cidr| [format!("ip saddr {cidr}"), format!("ip daddr {cidr}")]);
        ("pods' traffic", both.map(|what| insert(&what)).collect())
    } else {
        ("the overlay (and pods' lookups at this node)", {
            let pods = desired.networks.iter().map(|network| format!("ip saddr {}", network.cidr));
            std::iter::once(format!("udp dport {VXLAN_PORT}")).chain(pods).map(|what| insert(&what)).collect()
        })
    };
    format!("chain {place} drops {traffic}; let it through with: nft '{}'", lines.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::samples;

    fn ruleset(policy: &str, rule: &str) -> Vec<Value> {
        let text = format!(
            r#"{{"nftables": [
                {{"chain": {{"family": "ip", "table": "filter", "name": "FORWARD", "type": "filter",
                             "hook": "forward", "prio": 0, "policy": "{policy}"}}}},
                {{"rule": {{"family": "ip", "table": "filter", "chain": "FORWARD", {rule}}}}}]}}"#
        );
        table::read::items(&text).unwrap()
    }

    fn is_blocked(policy: &str, rule: &str) -> bool {
        blocked(&ruleset(policy, rule), &samples::desired()).is_some()
    }

    #[test]
    fn a_dropping_policy_is_named_with_the_line_that_helps() {
        let found = blocked(&ruleset("drop", r#""expr": []"#), &samples::desired());
        let Some(Condition::NetworkBlocked(text)) = found else { panic!("not found") };
        assert!(text.contains("chain ip filter FORWARD drops"), "{text}");
        assert!(text.contains("insert rule ip filter FORWARD ip saddr 10.42.0.0/16 accept"), "{text}");
    }

    #[test]
    fn a_chain_that_was_opened_for_us_is_not_named() {
        assert!(!is_blocked("drop", r#""comment": "skein", "expr": [{"accept": null}]"#));
        assert!(!is_blocked("drop", r#""expr": [{"counter": {}}, {"accept": null}]"#));
        assert!(!is_blocked("accept", r#""expr": []"#));
    }

    #[test]
    fn a_closing_reject_blocks_like_a_policy() {
        assert!(is_blocked("accept", r#""expr": [{"reject": null}]"#));
        assert!(!is_blocked("accept", r#""expr": [{"match": {}}, {"drop": null}]"#));
    }
}
