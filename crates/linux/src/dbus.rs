//! A D-Bus client, as far as calls to systemd and waiting for its jobs need one (D-Bus specification, "Message
//! Protocol"). It blocks, and has neither threads nor a type registry.
//!
//! ```text
//! connect ─▶ AUTH EXTERNAL, BEGIN ─▶ OK ─▶ [Hello, on a bus] ─▶ call ─▶ reply
//!                                                           └ signals received meanwhile are kept
//! ```
//!
//! Existing libraries bring an executor, threads or a C library, and this is part of every shim.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use types::{Context as _, Error, ErrorKind, Result};

/// How long a reply may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of a received message, at most. Those of systemd are much shorter.
const MESSAGE_MAX: usize = 1 << 20;
/// Signals that are kept until they are asked for; the oldest are dropped first.
const SIGNALS_MAX: usize = 256;

/// A value of a property or an argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Text(String),
    Bool(bool),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    Texts(Vec<String>),
    U32s(Vec<u32>),
    Bytes(Vec<u8>),
    Pairs(Vec<(String, String)>),
    /// `a(sv)`
    Properties(Vec<(String, Value)>),
    /// `a(sa(sv))`, always empty: the further units of `StartTransientUnit`.
    NoUnits,
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Value::Text(_) => "s",
            Value::Bool(_) => "b",
            Value::I32(_) => "i",
            Value::U32(_) => "u",
            Value::I64(_) => "x",
            Value::U64(_) => "t",
            Value::Texts(_) => "as",
            Value::U32s(_) => "au",
            Value::Bytes(_) => "ay",
            Value::Pairs(_) => "a(ss)",
            Value::Properties(_) => "a(sv)",
            Value::NoUnits => "a(sa(sv))",
        }
    }
}

/// A method of an object.
#[derive(Clone, Copy)]
pub(crate) struct Method<'a> {
    pub(crate) destination: &'a str,
    pub(crate) path: &'a str,
    pub(crate) interface: &'a str,
    pub(crate) member: &'a str,
}

/// A received message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    kind: u8,
    reply_to: u32,
    pub(crate) interface: String,
    pub(crate) member: String,
    error: String,
    signature: String,
    body: Vec<u8>,
}

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// Header fields, by number.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

pub(crate) struct Connection {
    socket: UnixStream,
    serial: u32,
    signals: VecDeque<Message>,
}

impl Connection {
    /// Connects to a peer, or with `is_bus` to a message bus. `NotFound` if nothing listens there.
    pub(crate) fn open(socket: &Path, is_bus: bool) -> Result<Connection> {
        let what = || format!("connect to {}", socket.display());
        let stream = match UnixStream::connect(socket) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return Err(Error::not_found(what()).with_source(error));
            }
            result => result.context(what)?,
        };
        Connection::over(stream, is_bus).map_err(|error| error.context(what()))
    }

    fn over(socket: UnixStream, is_bus: bool) -> Result<Connection> {
        socket.set_read_timeout(Some(PATIENCE)).context(|| "limit the time of an answer")?;
        socket.set_write_timeout(Some(PATIENCE)).context(|| "limit the time of a call")?;
        let mut connection = Connection { socket, serial: 0, signals: VecDeque::new() };
        connection.authenticate()?;
        if is_bus {
            connection.call(BUS.method("Hello"), &[])?;
        }
        Ok(connection)
    }

    /// Authenticates with `EXTERNAL`: the kernel vouches for the caller. No uid is sent, as that of a user in a user
    /// namespace differs on the other side. `AUTH` is answered by `DATA`, or by `OK` at once by systemd before 247, and
    /// `DATA` by `OK`.
    ///
    /// `BEGIN` is sent together with them, as systemd's own clients do: systemd overlooks a call that it reads together
    /// with a `BEGIN`.
    fn authenticate(&mut self) -> Result<()> {
        self.socket.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n").context(|| "authenticate")?;
        for expected in [&["DATA\r\n", "OK "][..], &["OK "]] {
            let answer = String::from_utf8_lossy(&self.read_line()?).into_owned();
            if !expected.iter().any(|word| answer.starts_with(word)) {
                let answer = answer.trim();
                return Err(Error::permission_denied(format!("authenticate: refused: {answer:?}")));
            }
        }
        Ok(())
    }

    fn read_line(&mut self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.socket.read_exact(&mut byte).context(|| "authenticate")?;
            line.push(byte[0]);
            if line.len() > 512 {
                return Err(Error::internal("authenticate: the answer has no end"));
            }
        }
        Ok(line)
    }

    /// Calls a method, and waits for its reply.
    pub(crate) fn call(&mut self, method: Method<'_>, arguments: &[Value]) -> Result<Message> {
        let what = || format!("call {} of {}", method.member, method.destination);
        self.serial += 1;
        let serial = self.serial;
        self.socket.write_all(&encode_call(serial, method, arguments)).context(what)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let message = self.receive(deadline).map_err(|error| error.context(what()))?;
            match message.kind {
                METHOD_RETURN if message.reply_to == serial => return Ok(message),
                ERROR if message.reply_to == serial => return Err(message.to_error().context(what())),
                SIGNAL => self.keep(message),
                _ => {}
            }
        }
    }

    /// The next signal that matches `wanted`, among kept ones and later ones.
    pub(crate) fn wait_for_signal(&mut self, wanted: impl Fn(&Message) -> bool) -> Result<Message> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(message) = self.signals.pop_front() {
                if wanted(&message) {
                    return Ok(message);
                }
                continue;
            }
            let message = self.receive(deadline)?;
            if message.kind == SIGNAL {
                self.keep(message);
            }
        }
    }

    fn keep(&mut self, signal: Message) {
        if self.signals.len() == SIGNALS_MAX {
            self.signals.pop_front();
        }
        self.signals.push_back(signal);
    }

    fn receive(&mut self, deadline: Instant) -> Result<Message> {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.socket.set_read_timeout(Some(left)).context(|| "limit the time of an answer")?;
        let mut read = |buffer: &mut [u8]| match self.socket.read_exact(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(Error::deadline_exceeded(format!("no answer within {} s", PATIENCE.as_secs())))
            }
            result => result.context(|| "read a message"),
        };
        let mut head = [0; 16];
        read(&mut head)?;
        let (fields_len, body_len) = lengths(&head)?;
        let mut rest = vec![0; fields_len.next_multiple_of(8) + body_len];
        read(&mut rest)?;
        let body = rest.split_off(fields_len.next_multiple_of(8));
        rest.truncate(fields_len);
        decode(head[1], &rest, body)
    }
}

/// The bus itself.
const BUS: Object = Object {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};

/// An object with one interface.
#[derive(Clone, Copy)]
pub(crate) struct Object {
    pub(crate) destination: &'static str,
    pub(crate) path: &'static str,
    pub(crate) interface: &'static str,
}

impl Object {
    pub(crate) fn method(self, member: &'static str) -> Method<'static> {
        Method { destination: self.destination, path: self.path, interface: self.interface, member }
    }
}

impl Connection {
    /// Subscribes to the signals of a match rule.
    pub(crate) fn add_match(&mut self, rule: &str) -> Result<()> {
        self.call(BUS.method("AddMatch"), &[Value::Text(rule.to_owned())]).map(drop)
    }
}

impl Message {
    /// The strings and object paths of a body that otherwise has 32-bit numbers only. A string may be in a variant.
    pub(crate) fn texts(&self) -> Result<Vec<String>> {
        let mut reader = Reader { bytes: &self.body, at: 0 };
        let mut texts = Vec::new();
        for kind in self.signature.bytes() {
            match kind {
                b's' | b'o' => texts.push(reader.text()?),
                b'v' if reader.signature()? == "s" => texts.push(reader.text()?),
                b'u' => drop(reader.u32()?),
                _ => return Err(malformed()),
            }
        }
        Ok(texts)
    }

    fn to_error(&self) -> Error {
        let words = match self.texts() {
            Ok(texts) => texts.into_iter().next().unwrap_or_default(),
            Err(_) => String::new(),
        };
        let kind = match self.error.rsplit('.').next().unwrap_or_default() {
            "UnitExists" => ErrorKind::AlreadyExists,
            "NoSuchUnit" | "UnknownObject" => ErrorKind::NotFound,
            "AccessDenied" | "InteractiveAuthorizationRequired" => ErrorKind::PermissionDenied,
            "InvalidArgs" | "PropertyReadOnly" | "UnknownProperty" | "BadUnitSetting" => {
                ErrorKind::InvalidArgument
            }
            "ServiceUnknown" | "NameHasNoOwner" => ErrorKind::FailedPrecondition,
            _ => ErrorKind::Unknown,
        };
        Error::new(kind, if words.is_empty() { self.error.clone() } else { words })
    }
}

// --- bytes ---

/// A writer that aligns each value to its size.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, size: usize) {
        self.0.resize(self.0.len().next_multiple_of(size), 0);
    }

    fn u32(&mut self, number: u32) {
        self.align(4);
        self.0.extend(number.to_le_bytes());
    }

    fn u64(&mut self, number: u64) {
        self.align(8);
        self.0.extend(number.to_le_bytes());
    }

    fn len(&mut self, len: usize) {
        self.u32(u32::try_from(len).expect("our messages are short"));
    }

    fn text(&mut self, text: &str) {
        self.len(text.len());
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.0.push(u8::try_from(text.len()).expect("our signatures are short"));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    /// The length counts the elements, not the padding before the first one.
    fn array(&mut self, alignment: usize, write: impl FnOnce(&mut Writer)) {
        self.u32(0);
        let place = self.0.len() - 4;
        self.align(alignment);
        let start = self.0.len();
        write(self);
        let len = u32::try_from(self.0.len() - start).expect("our messages are short");
        self.0[place..place + 4].copy_from_slice(&len.to_le_bytes());
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Text(text) => self.text(text),
            Value::Bool(yes) => self.u32(u32::from(*yes)),
            Value::I32(number) => self.u32(number.cast_unsigned()),
            Value::U32(number) => self.u32(*number),
            Value::I64(number) => self.u64(number.cast_unsigned()),
            Value::U64(number) => self.u64(*number),
            Value::Texts(texts) => {
                self.array(4, |writer| {
                    for text in texts {
                        writer.align(4);
                        writer.text(text);
                    }
                });
            }
            Value::U32s(numbers) => {
                self.array(4, |writer| numbers.iter().for_each(|number| writer.u32(*number)));
            }
            Value::Bytes(bytes) => self.array(1, |writer| writer.0.extend(bytes)),
            Value::Pairs(pairs) => self.array(8, |writer| {
                for (first, second) in pairs {
                    writer.align(8);
                    writer.text(first);
                    writer.text(second);
                }
            }),
            Value::Properties(properties) => self.array(8, |writer| {
                for (name, value) in properties {
                    writer.align(8);
                    writer.text(name);
                    writer.variant(value);
                }
            }),
            Value::NoUnits => self.array(8, |_| {}),
        }
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        self.value(value);
    }

    fn field(&mut self, number: u8, signature: &str, write: impl FnOnce(&mut Writer)) {
        self.align(8);
        self.0.push(number);
        self.signature(signature);
        write(self);
    }
}

fn encode_call(serial: u32, method: Method<'_>, arguments: &[Value]) -> Vec<u8> {
    let mut body = Writer::default();
    arguments.iter().for_each(|argument| body.value(argument));
    let signature: String = arguments.iter().map(Value::signature).collect();
    let mut message = Writer(vec![b'l', METHOD_CALL, 0, 1]);
    message.len(body.0.len());
    message.u32(serial);
    message.array(8, |writer| {
        writer.field(PATH, "o", |writer| writer.text(method.path));
        writer.field(DESTINATION, "s", |writer| writer.text(method.destination));
        writer.field(INTERFACE, "s", |writer| writer.text(method.interface));
        writer.field(MEMBER, "s", |writer| writer.text(method.member));
        if !signature.is_empty() {
            writer.field(SIGNATURE, "g", |writer| writer.signature(&signature));
        }
    });
    message.align(8);
    message.0.extend(body.0);
    message.0
}

fn malformed() -> Error {
    Error::data_loss("a message on D-Bus is malformed")
}

/// Bytes of header fields and body, from the fixed part of a message.
fn lengths(head: &[u8; 16]) -> Result<(usize, usize)> {
    // Both ends are on one machine, and systemd uses its byte order.
    if head[0] != b'l' || head[3] != 1 {
        return Err(malformed());
    }
    let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes")) as usize;
    let (body, fields) = (number(4), number(12));
    if body > MESSAGE_MAX || fields > MESSAGE_MAX {
        return Err(Error::resource_exhausted(format!("a message on D-Bus of {} bytes", body.max(fields))));
    }
    Ok((fields, body))
}

fn decode(kind: u8, fields: &[u8], body: Vec<u8>) -> Result<Message> {
    let mut message = Message { kind, body, ..Message::default() };
    // Fields begin at byte 16 of the message, which is aligned like 0.
    let mut reader = Reader { bytes: fields, at: 0 };
    while reader.at < fields.len() {
        reader.align(8)?;
        let number = reader.u8()?;
        match (number, reader.signature()?.as_str()) {
            (REPLY_SERIAL, "u") => message.reply_to = reader.u32()?,
            (INTERFACE, "s") => message.interface = reader.text()?,
            (MEMBER, "s") => message.member = reader.text()?,
            (ERROR_NAME, "s") => message.error = reader.text()?,
            (SIGNATURE, "g") => message.signature = reader.signature()?,
            (_, "s" | "o") => drop(reader.text()?),
            (_, "g") => drop(reader.signature()?),
            (_, "u") => drop(reader.u32()?),
            _ => return Err(malformed()),
        }
    }
    Ok(message)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, len: usize) -> Result<&[u8]> {
        let end = self.at.checked_add(len).ok_or_else(malformed)?;
        let bytes = self.bytes.get(self.at..end).ok_or_else(malformed)?;
        self.at = end;
        Ok(bytes)
    }

    fn align(&mut self, size: usize) -> Result<()> {
        self.take(self.at.next_multiple_of(size) - self.at).map(drop)
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32> {
        self.align(4)?;
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    fn string(&mut self, len: usize) -> Result<String> {
        let text = String::from_utf8(self.take(len)?.to_vec()).map_err(|_| malformed())?;
        if self.u8()? == 0 { Ok(text) } else { Err(malformed()) }
    }

    fn text(&mut self) -> Result<String> {
        let len = self.u32()? as usize;
        self.string(len)
    }

    fn signature(&mut self) -> Result<String> {
        let len = usize::from(self.u8()?);
        self.string(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: Object = Object { destination: "a.b", path: "/a", interface: "a.B" };

    /// A message as a peer would send it: `fields` are reply serial, error name, member; the body is texts.
    fn message(kind: u8, reply_to: u32, name: &str, texts: &[&str]) -> Vec<u8> {
        let mut body = Writer::default();
        texts.iter().for_each(|text| body.text(text));
        let mut message = Writer(vec![b'l', kind, 0, 1]);
        message.len(body.0.len());
        message.u32(7);
        message.array(8, |writer| {
            writer.field(REPLY_SERIAL, "u", |writer| writer.u32(reply_to));
            let field = if kind == ERROR { ERROR_NAME } else { MEMBER };
            writer.field(field, "s", |writer| writer.text(name));
            writer.field(SIGNATURE, "g", |writer| writer.signature(&"s".repeat(texts.len())));
        });
        message.align(8);
        message.0.extend(body.0);
        message.0
    }

    /// A connection to a peer that sends `answers` after the first message, and closes.
    fn peer(answers: Vec<u8>) -> Result<Connection> {
        peer_that_welcomes(b"DATA\r\nOK 0123\r\n", answers)
    }

    fn peer_that_welcomes(welcome: &'static [u8], answers: Vec<u8>) -> Result<Connection> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || {
            let mut asked = [0; 1024];
            let len = theirs.read(&mut asked).unwrap();
            assert_eq!(&asked[..len], b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n");
            theirs.write_all(welcome).unwrap();
            theirs.write_all(&answers).unwrap();
            // Reads the requests, so that sending them does not fail.
            let mut rest = Vec::new();
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            theirs.read_to_end(&mut rest).unwrap();
        });
        let connection = Connection::over(ours, false);
        drop(thread);
        connection
    }

    #[test]
    fn authentication_needs_data_and_ok() {
        let answer = || message(METHOD_RETURN, 1, "", &["yes"]);
        for welcome in [&b"DATA\r\nOK 0123\r\n"[..], b"OK 0123\r\nOK 0123\r\n"] {
            let mut connection = peer_that_welcomes(welcome, answer()).unwrap();
            assert_eq!(connection.call(OBJECT.method("M"), &[]).unwrap().texts().unwrap(), ["yes"]);
        }
        for refusal in [&b"REJECTED EXTERNAL\r\n"[..], b"DATA\r\nREJECTED\r\n", b"DATA\r\nDATA\r\n"] {
            let error = peer_that_welcomes(refusal, answer()).err().unwrap();
            assert!(error.is(ErrorKind::PermissionDenied), "{error:?}");
        }
    }

    #[test]
    fn calls_are_laid_out_as_the_specification_says() {
        let call = encode_call(1, OBJECT.method("M"), &[Value::Text("x".into()), Value::Bool(true)]);
        let fields = b"\x01\x01o\0\x02\0\0\0/a\0\0\0\0\0\0\x06\x01s\0\x03\0\0\0a.b\0\0\0\0\0\
                       \x02\x01s\0\x03\0\0\0a.B\0\0\0\0\0\x03\x01s\0\x01\0\0\0M\0\0\0\0\0\0\0\x08\x01g\0\x02sb\0";
        let head = b"l\x01\0\x01\x0c\0\0\0\x01\0\0\0";
        let mut expected = head.to_vec();
        expected.extend(u32::try_from(fields.len()).unwrap().to_le_bytes());
        expected.extend(fields);
        expected.resize(expected.len().next_multiple_of(8), 0);
        expected.extend(b"\x01\0\0\0x\0\0\0\x01\0\0\0");
        assert_eq!(call, expected);
    }

    #[test]
    fn properties_are_aligned() {
        let mut writer = Writer::default();
        writer
            .value(&Value::Properties(vec![("A".into(), Value::U64(5)), ("B".into(), Value::U32s(vec![6]))]));
        let expected = b"\x2c\0\0\0\0\0\0\0\x01\0\0\0A\0\x01t\0\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x01\0\0\0B\0\x02au\0\0\0\
                         \x04\0\0\0\x06\0\0\0";
        assert_eq!(writer.0, expected);
    }

    #[test]
    fn texts_of_a_list_are_aligned() {
        let mut writer = Writer::default();
        let texts = Value::Texts(vec!["ab".into(), "c".into()]);
        writer.variant(&texts);
        writer.variant(&Value::I32(-2));
        let expected = b"\x02as\0\x0e\0\0\0\x02\0\0\0ab\0\0\x01\0\0\0c\0\x01i\0\0\0\0\xfe\xff\xff\xff";
        assert_eq!(writer.0, expected);
    }

    #[test]
    fn a_text_may_be_a_variant() {
        let mut body = Writer::default();
        body.variant(&Value::Text("252".into()));
        let message = Message { signature: "v".into(), body: body.0, ..Message::default() };
        assert_eq!(message.texts().unwrap(), ["252"]);
        let mut body = Writer::default();
        body.variant(&Value::U32(252));
        assert!(Message { body: body.0, ..message }.texts().is_err());
    }

    #[test]
    fn signals_that_come_before_the_answer_are_kept() {
        let mut answers = message(SIGNAL, 0, "JobRemoved", &["early"]);
        answers.extend(message(METHOD_RETURN, 1, "", &["job"]));
        answers.extend(message(SIGNAL, 0, "Other", &[]));
        answers.extend(message(SIGNAL, 0, "JobRemoved", &["late"]));
        let mut connection = peer(answers).unwrap();
        assert_eq!(connection.call(OBJECT.method("M"), &[]).unwrap().texts().unwrap(), ["job"]);
        for expected in ["early", "late"] {
            let signal = connection.wait_for_signal(|signal| signal.member == "JobRemoved").unwrap();
            assert_eq!(signal.texts().unwrap(), [expected]);
        }
        assert!(connection.wait_for_signal(|_| true).is_err(), "the peer has hung up");
    }

    #[test]
    fn refusals_have_a_kind_and_the_peers_words() {
        let refusal =
            message(ERROR, 1, "org.freedesktop.systemd1.UnitExists", &["Unit x.scope already exists."]);
        let error = peer(refusal).unwrap().call(OBJECT.method("M"), &[]).unwrap_err();
        assert!(error.is(ErrorKind::AlreadyExists), "{error:?}");
        assert!(error.chain().contains("x.scope already exists"), "{error:?}");
    }

    #[test]
    fn nonsense_is_an_error() {
        let mut huge = message(METHOD_RETURN, 1, "", &[]);
        huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut torn = message(METHOD_RETURN, 1, "", &["x"]);
        torn[20] = 0xff;
        for bytes in [huge, torn, b"B".repeat(16), b"HTTP/1.1 400 Bad Request".to_vec(), Vec::new()] {
            assert!(peer(bytes.clone()).unwrap().call(OBJECT.method("M"), &[]).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_socket_without_a_listener_is_not_found() {
        let error = Connection::open(Path::new("/no/such/socket"), false).err().unwrap();
        assert!(error.is(ErrorKind::NotFound), "{error:?}");
    }
}
