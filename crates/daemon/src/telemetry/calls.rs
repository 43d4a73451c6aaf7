//! Metrics of gRPC calls: started, handled by status code, durations, and messages received and sent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use api::services::{SERVICES, Shape};
use http::{Request, Response};
use stdx::Mutex;
use tonic::Code;
use tonic::body::Body;

use super::ends::{End, until_end};
use super::histogram::Histogram;
use super::message_counter;
use super::text::Text;

/// The most methods that are counted, more than exist: clients may call arbitrary names.
const METHODS_MAX: usize = 512;

/// The counters. Clones share them.
#[derive(Clone)]
pub(crate) struct Calls(Arc<Inner>);

struct Inner {
    methods: Mutex<BTreeMap<Method, Counts>>,
    /// Whether durations are measured.
    times: bool,
}

type Method = (String, String);

/// Number of gRPC status codes, which start at 0.
const CODES: usize = 17;

/// Writes the samples of one method, given its labels.
type Writing<'a> = &'a dyn Fn(&mut Text, &[(&str, &str)], &Counts);

#[derive(Default)]
struct Counts {
    started: u64,
    /// By status code.
    handled: [u64; CODES],
    times: Histogram,
    messages: Messages,
}

/// Number of messages of a method's calls.
#[derive(Clone, Default)]
struct Messages {
    received: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
}

impl Calls {
    /// Starts with all methods and status codes at zero, as in containerd, so that a query of increases sees the first
    /// failure.
    pub(crate) fn new(times: bool) -> Calls {
        let served = SERVICES.iter().flat_map(|(package, service, _, rows)| {
            rows.iter().map(move |(_, method, ..)| (format!("{package}.{service}"), (*method).to_owned()))
        });
        let methods = served.map(|method| (method, Counts::default())).collect();
        Calls(Arc::new(Inner { methods: Mutex::new(methods), times }))
    }

    /// Counts a started call.
    pub(crate) fn begin(&self, service: &str, method: &str) -> Running {
        let mut key = (service.to_owned(), method.to_owned());
        let mut methods = self.0.methods.lock();
        if methods.len() >= METHODS_MAX && !methods.contains_key(&key) {
            key.1 = "other".to_owned();
        }
        let counts = methods.entry(key.clone()).or_default();
        counts.started += 1;
        let messages = counts.messages.clone();
        Running { calls: self.clone(), key, messages, begun: Instant::now(), is_over: false }
    }

    pub(super) fn write(&self, text: &mut Text) {
        let methods = self.0.methods.lock();
        let each = |text: &mut Text, name: &str, kind: &str, help: &str, write: Writing<'_>| {
            text.family(name, kind, help);
            for ((service, method), counts) in &*methods {
                let kind = kind_of(service, method);
                let labels =
                    [("grpc_method", method.as_str()), ("grpc_service", service), ("grpc_type", kind)];
                write(text, &labels, counts);
            }
        };
        let (started, handled) = ("grpc_server_started_total", "grpc_server_handled_total");
        each(
            text,
            started,
            "counter",
            "Total number of RPCs started on the server.",
            &|text, labels, counts| {
                text.sample(started, labels, counts.started as f64);
            },
        );
        let help = "Total number of RPCs completed on the server, regardless of success or failure.";
        each(text, handled, "counter", help, &|text, labels, counts| {
            for (code, count) in (0..).zip(counts.handled) {
                let name = format!("{:?}", Code::from_i32(code));
                // Go's spelling of the codes.
                let name = match name.as_str() {
                    "Ok" => "OK",
                    "Cancelled" => "Canceled",
                    name => name,
                };
                text.sample(handled, &[&[("grpc_code", name)], labels].concat(), count as f64);
            }
        });
        let received = "grpc_server_msg_received_total";
        let help = "Total number of RPC stream messages received on the server.";
        each(text, received, "counter", help, &|text, labels, counts| {
            text.sample(received, labels, counts.messages.received.load(Ordering::Relaxed) as f64);
        });
        let sent = "grpc_server_msg_sent_total";
        let help = "Total number of gRPC stream messages sent by the server.";
        each(text, sent, "counter", help, &|text, labels, counts| {
            text.sample(sent, labels, counts.messages.sent.load(Ordering::Relaxed) as f64);
        });
        if !self.0.times {
            return;
        }
        let help = "Histogram of response latency (seconds) of gRPC that had been application-level handled by the server.";
        each(text, "grpc_server_handling_seconds", "histogram", help, &|text, labels, counts| {
            counts.times.write(text, "grpc_server_handling_seconds", labels);
        });
    }
}

/// The type label of Go's middleware.
fn kind_of(service: &str, method: &str) -> &'static str {
    let is_it = |package: &str, name: &str| {
        service.strip_prefix(package).and_then(|rest| rest.strip_prefix('.')) == Some(name)
    };
    let of_service = SERVICES.iter().filter(|(package, name, ..)| is_it(package, name));
    let row = of_service.flat_map(|(.., rows)| rows.iter()).find(|(_, name, ..)| *name == method);
    match row.map(|(shape, ..)| *shape) {
        None | Some(Shape::Unary) => "unary",
        Some(Shape::Up) => "client_stream",
        Some(Shape::Down) => "server_stream",
        Some(Shape::Both) => "bidi_stream",
    }
}

/// A call in progress. If it is dropped before its end, the client has disconnected.
pub(crate) struct Running {
    calls: Calls,
    key: Method,
    messages: Messages,
    begun: Instant,
    is_over: bool,
}

impl Running {
    /// Wraps the request to count its messages.
    pub(crate) fn receive(&self, request: Request<Body>) -> Request<Body> {
        request.map(|body| message_counter::count(body, self.messages.received.clone()))
    }

    /// Wraps the response to count its messages and its end.
    pub(crate) fn follow(self, response: Response<Body>) -> Response<Body> {
        let sent = self.messages.sent.clone();
        until_end(response.map(|body| message_counter::count(body, sent)), self)
    }
}

impl End for Running {
    fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        let time = self.begun.elapsed();
        let mut methods = self.calls.0.methods.lock();
        let counts = methods.entry(self.key.clone()).or_default();
        counts.handled[code as usize] += 1;
        counts.times.add(time);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    fn text(calls: &Calls) -> String {
        let mut text = Text::default();
        calls.write(&mut text);
        text.into_string()
    }

    #[test]
    fn calls_are_counted_by_method_and_end() {
        let calls = Calls::new(true);
        let (service, method) = ("containerd.services.content.v1.Content", "Read");
        drop(calls.begin(service, method));
        let refused = calls.begin(service, method).follow(Status::not_found("x").into_http());
        assert_eq!(refused.headers()["grpc-status"], "5");
        let labels =
            format!("grpc_method=\"{method}\",grpc_service=\"{service}\",grpc_type=\"server_stream\"");
        let unasked = "grpc_method=\"Server\",grpc_service=\"containerd.services.introspection.v1.Introspection\",\
                       grpc_type=\"unary\"";
        let text = text(&calls);
        for expected in [
            format!("grpc_server_started_total{{{labels}}} 2"),
            format!("grpc_server_handled_total{{grpc_code=\"Canceled\",{labels}}} 1"),
            format!("grpc_server_handled_total{{grpc_code=\"NotFound\",{labels}}} 1"),
            format!("grpc_server_handling_seconds_bucket{{{labels},le=\"0.005\"}} 2"),
            format!("grpc_server_handling_seconds_bucket{{{labels},le=\"+Inf\"}} 2"),
            format!("grpc_server_handling_seconds_count{{{labels}}} 2"),
            // Combinations that have not occurred are present.
            format!("grpc_server_handled_total{{grpc_code=\"Internal\",{labels}}} 0"),
            format!("grpc_server_handled_total{{grpc_code=\"OK\",{unasked}}} 0"),
            format!("grpc_server_started_total{{{unasked}}} 0"),
        ] {
            assert!(text.lines().any(|line| line == expected), "{expected} is missing in\n{text}");
        }
    }

    #[test]
    fn names_that_callers_make_up_do_not_fill_the_memory() {
        let calls = Calls::new(false);
        for number in 0..METHODS_MAX * 2 {
            drop(calls.begin("s", &number.to_string()));
        }
        assert_eq!(calls.0.methods.lock().len(), METHODS_MAX + 1);
        assert!(text(&calls).contains("grpc_method=\"other\""));
        assert!(!text(&calls).contains("handling_seconds"));
    }
}
