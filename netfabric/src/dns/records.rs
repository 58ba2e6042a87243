//! What names of the cluster mean.
//!
//! Decides, from services and pods, the answer to a name and type: found, known without such records, unknown, or not
//! ours. Pure. Must not ask anybody.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::DOMAIN;
use crate::desired::Protocol;

/// A service by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedService {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// What its name leads to.
    pub addresses: ServiceAddresses,
    /// Its ports; those with a name get an SRV record.
    pub ports: Vec<NamedPort>,
}

/// What a service's name leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceAddresses {
    /// One virtual address.
    Vip(Ipv4Addr),
    /// Headless: its endpoints.
    Endpoints(Vec<NamedEndpoint>),
}

/// An endpoint of a headless service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedEndpoint {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its own name below the service's; else one is made of the address.
    pub hostname: Option<String>,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

/// A pod, found by its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPod {
    /// Its namespace.
    pub namespace: String,
    /// Its address.
    pub address: Ipv4Addr,
}

/// All names of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    names: BTreeMap<String, Named>,
}

/// What hangs on a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// Ports and the names to find them at.
    pub services: Vec<(u16, String)>,
    /// Names, of an address.
    pub pointers: Vec<String>,
}

/// The meaning of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// A name of ours. It may have no records of the type that is asked for.
    Known(&'a Named),
    /// In our domain, and nobody's.
    Unknown,
    /// Outside of our domain.
    Foreign,
}

impl Records {
    /// All records of these services and pods.
    pub fn build(services: &[NamedService], pods: &[NamedPod]) -> Self {
        let mut records = Self::default();
        records.at(DOMAIN.to_owned());
        records.at(format!("svc.{DOMAIN}"));
        records.at(format!("pod.{DOMAIN}"));
        for pod in pods {
            records.add_pod(pod);
        }
        for service in services {
            records.add_service(service);
        }
        records
    }

    /// What `name` (in lower case, without the last dot) means.
    pub fn find(&self, name: &str) -> Meaning<'_> {
        match self.names.get(name) {
            Some(named) => Meaning::Known(named),
            None if name.ends_with(&format!(".{DOMAIN}")) => Meaning::Unknown,
            None => Meaning::Foreign,
        }
    }

    /// The entry of a name; every name above it up to the domain exists too.
    fn at(&mut self, name: String) -> &mut Named {
        let mut above = name.as_str();
        while let Some((_, parent)) = above.split_once('.') {
            if parent != DOMAIN && !parent.ends_with(&format!(".{DOMAIN}")) {
                break;
            }
            self.names.entry(parent.to_owned()).or_default();
            above = parent;
        }
        self.names.entry(name).or_default()
    }

    fn add_pod(&mut self, pod: &NamedPod) {
        let name = format!("{}.{}.pod.{DOMAIN}", dashed(pod.address), pod.namespace);
        self.add_address(&name, pod.address);
    }

    fn add_address(&mut self, name: &str, address: Ipv4Addr) {
        let addresses = &mut self.at(name.to_owned()).addresses;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
        let pointers = &mut self.at(reverse(address)).pointers;
        if !pointers.iter().any(|pointer| pointer == name) {
            pointers.push(name.to_owned());
        }
    }

    fn add_service(&mut self, service: &NamedService) {
        let name = format!("{}.{}.svc.{DOMAIN}", service.name, service.namespace);
        match &service.addresses {
            ServiceAddresses::Vip(vip) => {
                // Of an address that a service and others share, the service's name is the first.
                self.add_address(&name, *vip);
                self.add_ports(&name, &name, &service.ports);
            }
            ServiceAddresses::Endpoints(endpoints) => {
                self.at(name.clone());
                for endpoint in endpoints {
                    self.add_endpoint(&name, endpoint, &service.ports);
                }
            }
        }
    }

    fn add_endpoint(&mut self, service: &str, endpoint: &NamedEndpoint, ports: &[NamedPort]) {
        let label = endpoint.hostname.clone().unwrap_or_else(|| dashed(endpoint.address));
        let own = format!("{label}.{service}");
        self.add_address(&own, endpoint.address);
        let addresses = &mut self.at(service.to_owned()).addresses;
        if !addresses.contains(&endpoint.address) {
            addresses.push(endpoint.address);
        }
        self.add_ports(service, &own, ports);
    }

    fn add_ports(&mut self, service: &str, target: &str, ports: &[NamedPort]) {
        for port in ports {
            let Some(name) = &port.name else { continue };
            let at = format!("_{name}._{}.{service}", port.protocol.name());
            self.at(at).services.push((port.port, target.to_owned()));
        }
    }
}

fn dashed(address: Ipv4Addr) -> String {
    address.to_string().replace('.', "-")
}

fn reverse(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("{d}.{c}.{b}.{a}.in-addr.arpa")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Records {
        let port = NamedPort { name: Some("http".to_owned()), protocol: Protocol::Tcp, port: 80 };
        let web = NamedService {
            name: "web".to_owned(),
            namespace: "default".to_owned(),
            addresses: ServiceAddresses::Vip([10, 43, 1, 1].into()),
            ports: vec![port.clone()],
        };
        let endpoint = |last, hostname: Option<&str>| NamedEndpoint {
            address: [10, 42, 1, last].into(),
            hostname: hostname.map(str::to_owned),
        };
        let db = NamedService {
            name: "db".to_owned(),
            addresses: ServiceAddresses::Endpoints(vec![endpoint(10, Some("db-0")), endpoint(11, None)]),
            ..web.clone()
        };
        let pod = NamedPod { namespace: "default".to_owned(), address: [10, 42, 1, 10].into() };
        Records::build(&[web, db], &[pod])
    }

    fn known(name: &str) -> Named {
        match records().find(name) {
            Meaning::Known(named) => named.clone(),
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn services_and_pods_have_addresses_and_names_back() {
        assert_eq!(known("web.default.svc.cluster.local").addresses, [Ipv4Addr::new(10, 43, 1, 1)]);
        assert_eq!(known("10-42-1-10.default.pod.cluster.local").addresses, [Ipv4Addr::new(10, 42, 1, 10)]);
        assert_eq!(known("1.1.43.10.in-addr.arpa").pointers, ["web.default.svc.cluster.local"]);
    }

    #[test]
    fn headless_services_lead_to_their_endpoints() {
        assert_eq!(known("db.default.svc.cluster.local").addresses.len(), 2);
        assert_eq!(known("db-0.db.default.svc.cluster.local").addresses, [Ipv4Addr::new(10, 42, 1, 10)]);
        let targets = known("_http._tcp.db.default.svc.cluster.local").services;
        assert_eq!(targets[1], (80, "10-42-1-11.db.default.svc.cluster.local".to_owned()));
    }

    #[test]
    fn names_above_names_exist_and_others_do_not() {
        assert_eq!(known("default.svc.cluster.local"), Named::default());
        assert_eq!(known("_tcp.web.default.svc.cluster.local"), Named::default());
        assert_eq!(records().find("nope.default.svc.cluster.local"), Meaning::Unknown);
        assert_eq!(records().find("example.com"), Meaning::Foreign);
        assert_eq!(records().find("notcluster.local"), Meaning::Foreign);
        assert_eq!(Records::build(&[], &[]).find("svc.cluster.local"), Meaning::Known(&Named::default()));
    }
}
