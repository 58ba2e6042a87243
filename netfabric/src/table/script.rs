//! The text of a transaction, one line, as `nft -i` takes it.
//!
//! Decides the order of the commands within a transaction. Must not decide what is in it.

use std::collections::BTreeMap;

use super::{Chain, Element, NAME, RuleId, VERSION, layout};
use crate::action::Transaction;

/// The commands that carry out `transaction`, separated by semicolons; nft applies all of them or none.
pub fn render(transaction: &Transaction) -> String {
    let mut commands = Vec::new();
    if transaction.fresh {
        commands.extend(recreate());
    }
    let (plain, base): (Vec<_>, Vec<_>) =
        transaction.put_chains.iter().partition(|chain| chain.hook.is_none());
    // All chains exist before any rule is written, so that rules may jump to any of them.
    commands.extend(plain.iter().chain(&base).map(|chain| declare(chain)));
    commands.extend(plain.iter().chain(&base).flat_map(|chain| fill(chain)));
    commands.extend(elements("delete", &transaction.remove, false));
    commands.extend(elements("add", &transaction.add, true));
    for name in &transaction.delete_chains {
        commands.push(format!("flush chain inet {NAME} {name}"));
    }
    for name in &transaction.delete_chains {
        commands.push(format!("delete chain inet {NAME} {name}"));
    }
    commands.join("; ")
}

/// `add` before `delete` makes the deletion succeed also when the table is not there.
fn recreate() -> impl Iterator<Item = String> {
    let begin = [
        format!("add table inet {NAME}"),
        format!("delete table inet {NAME}"),
        format!("add table inet {NAME}"),
        format!("add chain inet {NAME} {VERSION}"),
    ];
    begin.into_iter().chain(layout::SETS.iter().map(|declaration| {
        let (kind, rest) = declaration.split_once(' ').unwrap_or((declaration, ""));
        format!("add {kind} inet {NAME} {rest}")
    }))
}

fn declare(chain: &Chain) -> String {
    match chain.hook {
        Some(hook) => format!("add chain inet {NAME} {} {{ {hook} }}", chain.name),
        None => format!("add chain inet {NAME} {}", chain.name),
    }
}

fn fill(chain: &Chain) -> Vec<String> {
    let flush = format!("flush chain inet {NAME} {}", chain.name);
    let rule = |text: &String| {
        format!(r#"add rule inet {NAME} {} {text} comment "{}""#, chain.name, RuleId::of(text).0)
    };
    std::iter::once(flush).chain(chain.rules.iter().map(rule)).collect()
}

/// One command per set: nft is far quicker with many elements in one command than with many commands.
fn elements(verb: &str, elements: &[Element], with_values: bool) -> Vec<String> {
    let mut by_set: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for element in elements {
        let text = match element.value() {
            Some(value) if with_values => format!("{} : {value}", element.key()),
            _ => element.key(),
        };
        by_set.entry(element.set()).or_default().push(text);
    }
    by_set
        .into_iter()
        .map(|(set, texts)| format!("{verb} element inet {NAME} {set} {{ {} }}", texts.join(", ")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{Endpoint, Protocol};
    use crate::observed::Frontend;

    #[test]
    fn elements_of_a_set_share_one_command() {
        let frontend = Frontend::Vip { address: [10, 43, 0, 1].into(), protocol: Protocol::Tcp, port: 80 };
        let endpoint = Endpoint { address: [10, 42, 1, 2].into(), port: 8080 };
        let transaction = Transaction {
            remove: vec![Element::Empty(frontend)],
            add: vec![Element::Slot(frontend, 0, endpoint), Element::Slot(frontend, 1, endpoint)],
            ..Transaction::default()
        };
        assert_eq!(
            render(&transaction),
            "delete element inet skein vip_empty { 10.43.0.1 . tcp . 80 }; add element inet skein vip_slots { \
             10.43.0.1 . tcp . 80 . 0x00000000 : 10.42.1.2 . 8080, \
             10.43.0.1 . tcp . 80 . 0x00010000 : 10.42.1.2 . 8080 }"
        );
    }
}
