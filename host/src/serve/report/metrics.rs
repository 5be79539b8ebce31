//! Metrics for Prometheus, over HTTP. They are made when somebody asks, from the same figures as everything else.
//!
//! The names, which are a promise to those who have built alerts on them, are in docs/src/reference/metrics.md.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use lazyroot_proto::reads::{Histogram, Origin};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::serve::listen::serve_each;
use crate::serve::server::Server;

/// What Prometheus asks for since 2.5.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Connections at a time; further ones wait in the system's queue. A server is scraped by one or two.
const MAX_CONNECTIONS: usize = 16;

/// How long a scrape may take, Prometheus' own patience.
const DEADLINE: Duration = Duration::from_secs(10);

/// The place where a server's metrics are to be had: `http://ADDRESS/metrics`.
pub struct Metrics {
    listener: TcpListener,
    registry: Registry,
}

impl Metrics {
    /// Listens at `address`.
    ///
    /// # Errors
    /// If the address is taken or not this machine's.
    pub async fn bind(address: SocketAddr, server: Arc<Server>) -> Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} for those who ask for metrics"))?;
        let mut registry = Registry::with_prefix("lazyroot");
        registry.register_collector(Box::new(Figures(server)));
        Ok(Self { listener, registry })
    }

    /// Where it listens: the port that the system chose if it was given as 0.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Answers for ever. Dropping the future ends its connections.
    pub async fn serve(self) {
        let registry = Arc::new(self.registry);
        serve_each(self.listener, MAX_CONNECTIONS, |stream| {
            let registry = registry.clone();
            let service = service_fn(move |request| {
                let response = answer(&request, &registry);
                async { Ok::<_, Infallible>(response) }
            });
            async {
                let http = http1::Builder::new().timer(TokioTimer::new()).keep_alive(false).to_owned();
                // Whoever asked may be gone.
                let _ = timeout(DEADLINE, http.serve_connection(TokioIo::new(stream), service)).await;
            }
        })
        .await;
    }
}

fn answer(request: &Request<Incoming>, registry: &Registry) -> Response<Full<Bytes>> {
    let response = Response::builder();
    let response = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {
            let mut text = String::new();
            text::encode(&mut text, registry).expect("a string takes all");
            response.header(CONTENT_TYPE, OPEN_METRICS).body(Full::from(text))
        }
        (_, "/metrics") => response.status(StatusCode::METHOD_NOT_ALLOWED).header(ALLOW, "GET").body(Full::default()),
        _ => response.status(StatusCode::NOT_FOUND).body(Full::from("metrics are at /metrics\n")),
    };
    response.expect("headers are constants")
}

/// Turns a server's figures into metrics.
struct Figures(Arc<Server>);

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Figures")
    }
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let (served, guests) = (self.0.totals().snapshot(), self.0.totals().guests());
        let seconds = Some(Unit::Seconds);
        gauge(&mut encoder, "sessions", "Data sessions under way", self.0.running() as u64)?;
        counter(&mut encoder, "sessions_begun", "Data sessions that have begun", self.0.totals().sessions())?;
        counter(&mut encoder, "bytes_sent", "Payload bytes sent to guests", served.bytes)?;
        counter(&mut encoder, "requests", "Requests answered", served.requests)?;
        counter(&mut encoder, "request_failures", "Requests answered with an error", served.failures)?;
        gauge(&mut encoder, "objects_sent", "Different objects of which something was sent", served.objects)?;
        counter(&mut encoder, "verified_bytes", "Bytes that guests checked against a digest", guests.verified_bytes)?;
        by_origin(
            &mut encoder,
            "reads",
            "Reads that left the page cache, by where their bytes came from",
            &guests.reads,
        )?;
        by_origin(&mut encoder, "read_bytes", "Bytes of those reads", &guests.read_bytes)?;
        counter(
            &mut encoder,
            "profile_bytes",
            "Bytes that boot profiles brought and guests watch",
            guests.profile_bytes,
        )?;
        let used = guests.profile_used_bytes;
        counter(&mut encoder, "profile_used_bytes", "Of those, bytes that programs have read since", used)?;
        let unseen = guests.read_bytes[Origin::Preloaded as usize];
        counter(
            &mut encoder,
            "profile_unseen_bytes",
            "Bytes that boot profiles put where guests do not watch",
            unseen,
        )?;
        counter(&mut encoder, "neighbour_bytes", "Bytes that came along with others", guests.neighbour_bytes)?;
        for (name, help, histogram) in [
            ("lookup", "How long LOOKUPs of objects took in guests", &guests.lookup),
            ("read", "How long READs took in guests", &guests.read),
            ("wire", "How long replies took that a read waited for", &guests.wire),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, seconds.as_ref(), MetricType::Histogram)?;
            let (sum, buckets) = buckets(histogram);
            metric.encode_histogram::<NoLabelSet>(sum, histogram.count(), &buckets, None)?;
        }
        Ok(())
    }
}

fn counter(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> fmt::Result {
    let metric = ConstCounter::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> fmt::Result {
    let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn by_origin(encoder: &mut DescriptorEncoder, name: &str, help: &str, values: &[u64]) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (origin, value) in Origin::ALL.iter().zip(values).filter(|(origin, _)| **origin != Origin::Preloaded) {
        ConstCounter::new(*value).encode(family.encode_family(&[("origin", origin.name())])?)?;
    }
    Ok(())
}

/// A histogram's sum and its buckets (upper bound, count), in seconds. The sum is an upper bound too: guests count how
/// many took how long, not how long all took.
fn buckets(histogram: &Histogram) -> (f64, Vec<(f64, u64)>) {
    let last = Histogram::BUCKETS - 1;
    let seconds = |bucket: usize| (1u64 << bucket) as f64 / 1e6;
    let sum = histogram.0.iter().enumerate().map(|(bucket, count)| seconds(bucket) * *count as f64).sum();
    let bound = |bucket| if bucket == last { f64::MAX } else { seconds(bucket) };
    (sum, histogram.0.iter().enumerate().map(|(bucket, count)| (bound(bucket), *count)).collect())
}
