//! Rewrites the addresses in a broker's answers, so that clients come back through the proxies.

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, DescribeClusterResponse, FindCoordinatorResponse, MetadataResponse, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// From an address that a broker advertises to the one that the client shall use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    map: BTreeMap<(String, i32), SocketAddr>,
}

impl Addresses {
    pub fn insert(&mut self, from: SocketAddr, to: SocketAddr) {
        self.map.insert((from.ip().to_string(), i32::from(from.port())), to);
    }

    pub fn is_in(&self, api_key: i16) -> bool {
        let names = [ApiKey::Metadata, ApiKey::FindCoordinator, ApiKey::DescribeCluster];
        !self.map.is_empty() && names.iter().any(|name| *name as i16 == api_key)
    }

    fn replace(&self, host: &mut StrBytes, port: &mut i32) {
        if let Some(to) = self.map.get(&(host.to_string(), *port)) {
            (*host, *port) = (StrBytes::from_string(to.ip().to_string()), i32::from(to.port()));
        }
    }

    /// An answer with its length in front, and the same with other addresses.
    pub fn rewrite(&self, frame: &Bytes, api_key: i16, version: i16) -> anyhow::Result<Bytes> {
        let api = ApiKey::try_from(api_key).map_err(|()| anyhow::anyhow!("an unknown request"))?;
        let header_version = api.response_header_version(version);
        let mut body = frame.slice(super::request::LENGTH_BYTES..);
        let header = ResponseHeader::decode(&mut body, header_version)?;
        let mut out = BytesMut::with_capacity(frame.len() + 64);
        out.extend_from_slice(&[0; super::request::LENGTH_BYTES]);
        header.encode(&mut out, header_version)?;
        match api {
            ApiKey::Metadata => {
                let mut response = MetadataResponse::decode(&mut body, version)?;
                response.brokers.iter_mut().for_each(|broker| self.replace(&mut broker.host, &mut broker.port));
                response.encode(&mut out, version)?;
            }
            ApiKey::FindCoordinator => {
                let mut response = FindCoordinatorResponse::decode(&mut body, version)?;
                self.replace(&mut response.host, &mut response.port);
                response.coordinators.iter_mut().for_each(|found| self.replace(&mut found.host, &mut found.port));
                response.encode(&mut out, version)?;
            }
            _ => {
                let mut response = DescribeClusterResponse::decode(&mut body, version)?;
                response.brokers.iter_mut().for_each(|broker| self.replace(&mut broker.host, &mut broker.port));
                response.encode(&mut out, version)?;
            }
        }
        let length = u32::try_from(out.len() - super::request::LENGTH_BYTES)?;
        out[..super::request::LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
        Ok(out.freeze())
    }
}
