//! Describes the messages for gRPC reflection: parses the `prost` structs in `src` and writes the
//! `google.protobuf.FileDescriptorSet` that they are on the wire.
//!
//! ```text
//! #[prost(string, tag = "3")] pub parent: String   ─▶  string parent = 3;
//! ```
//!
//! The structs are the only definition of the fields, so the description cannot differ from what is served. Each
//! package becomes one file of the set. A message has the name of its struct, unless the first line of the struct's
//! comment is a full name in backquotes, or a row of `type_urls!` or [`NAMES`] gives another. A struct that cannot be
//! parsed fails the build.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, EnumValueDescriptorProto, FieldDescriptorProto,
    FileDescriptorProto, FileDescriptorSet, MessageOptions, MethodDescriptorProto, OneofDescriptorProto,
    ServiceDescriptorProto,
};

use super::grpc::snake_case;
use super::services::{Row, Shape};

/// Files below `src`, and the package of their messages: those of services, and those packed in an `Any`.
const SOURCES: &[(&str, &str)] = &[
    ("engine.rs", "hoist.engine.v1"),
    ("grpc/containers.rs", "containerd.services.containers.v1"),
    ("grpc/content.rs", "containerd.services.content.v1"),
    ("grpc/diff.rs", "containerd.services.diff.v1"),
    ("grpc/event.rs", "containerd.events"),
    ("grpc/events.rs", "containerd.services.events.v1"),
    ("grpc/health.rs", "grpc.health.v1"),
    ("grpc/images.rs", "containerd.services.images.v1"),
    ("grpc/introspection.rs", "containerd.services.introspection.v1"),
    ("grpc/leases.rs", "containerd.services.leases.v1"),
    ("grpc/mounts.rs", "containerd.services.mounts.v1"),
    ("grpc/namespaces.rs", "containerd.services.namespaces.v1"),
    ("grpc/reflection.rs", "grpc.reflection.v1"),
    ("grpc/reflection.rs", "grpc.reflection.v1alpha"),
    ("grpc/sandbox.rs", "containerd.services.sandbox.v1"),
    ("grpc/sandbox/controller.rs", "containerd.services.sandbox.v1"),
    ("grpc/snapshots.rs", "containerd.services.snapshots.v1"),
    ("grpc/streaming.rs", "containerd.services.streaming.v1"),
    ("grpc/tasks.rs", "containerd.services.tasks.v1"),
    ("grpc/transfer.rs", "containerd.types.transfer"),
    ("grpc/types.rs", "containerd.types"),
    ("grpc/version.rs", "containerd.services.version.v1"),
    ("shim/cgroups/v1.rs", "io.containerd.cgroups.v1"),
    ("shim/cgroups/v2.rs", "io.containerd.cgroups.v2"),
    ("shim/events.rs", "containerd.events"),
    ("shim/introspection.rs", "containerd.types"),
    ("shim/runc.rs", "containerd.runc.v1"),
    ("shim/types.rs", "containerd.types"),
];

/// File, Rust name, full name: for messages that are nested in another, or in another package than their file.
const NAMES: &[(&str, &str, &str)] = &[
    ("grpc/containers.rs", "Runtime", "containerd.services.containers.v1.Container.Runtime"),
    ("grpc/health.rs", "ServingStatus", "grpc.health.v1.HealthCheckResponse.ServingStatus"),
    ("grpc/transfer.rs", "HttpDebug", "containerd.types.transfer.HTTPDebug"),
    ("grpc/transfer.rs", "TransferOptions", "containerd.services.transfer.v1.TransferOptions"),
    ("grpc/transfer.rs", "TransferRequest", "containerd.services.transfer.v1.TransferRequest"),
    ("grpc/types.rs", "Process", "containerd.v1.types.Process"),
    ("shim/cgroups/v1.rs", "BlkioEntry", "io.containerd.cgroups.v1.BlkIOEntry"),
    ("shim/cgroups/v1.rs", "BlkioStat", "io.containerd.cgroups.v1.BlkIOStat"),
    ("shim/cgroups/v1.rs", "CpuStat", "io.containerd.cgroups.v1.CPUStat"),
    ("shim/cgroups/v1.rs", "CpuUsage", "io.containerd.cgroups.v1.CPUUsage"),
    ("shim/cgroups/v2.rs", "CpuStat", "io.containerd.cgroups.v2.CPUStat"),
    ("shim/cgroups/v2.rs", "HugetlbStat", "io.containerd.cgroups.v2.HugeTlbStat"),
    ("shim/cgroups/v2.rs", "IoEntry", "io.containerd.cgroups.v2.IOEntry"),
    ("shim/cgroups/v2.rs", "IoStat", "io.containerd.cgroups.v2.IOStat"),
    ("shim/events.rs", "ForwardRequest", "containerd.services.events.ttrpc.v1.ForwardRequest"),
];

/// Fields whose name on the wire is not in snake case: Rust name of the message, of the field, and the name on the
/// wire.
const FIELD_NAMES: &[(&str, &str, &str)] =
    &[("AuthResponse", "auth_type", "authType"), ("ContentCreate", "media_type", "mediaType")];

/// Files in which a type is looked up that its own file does not define.
const SHARED: [&str; 3] = ["grpc/types.rs", "shim/types.rs", "grpc/sandbox.rs"];

/// Name, number, type, label.
type Field = (&'static str, i32, Type, Label);

/// Google's well-known types, each in a file of its own.
const WELL_KNOWN: &[(&str, &str, &[Field])] = &[
    (
        "Any",
        "any",
        &[("type_url", 1, Type::String, Label::Optional), ("value", 2, Type::Bytes, Label::Optional)],
    ),
    ("Empty", "empty", &[]),
    ("FieldMask", "field_mask", &[("paths", 1, Type::String, Label::Repeated)]),
    (
        "Timestamp",
        "timestamp",
        &[("seconds", 1, Type::Int64, Label::Optional), ("nanos", 2, Type::Int32, Label::Optional)],
    ),
];

type Service = (&'static str, &'static str, &'static str, &'static [Row]);

pub(crate) fn write(services: &[Service]) {
    let set = describe(services);
    let out = std::env::var("OUT_DIR").expect("cargo sets it");
    fs::write(format!("{out}/descriptors.bin"), set.encode_to_vec()).expect("a writable directory");
}

fn describe(services: &[Service]) -> FileDescriptorSet {
    let sources: Vec<Source> = SOURCES.iter().map(|(path, package)| Source::read(path, package)).collect();
    let mut files = Files::default();
    for (index, source) in sources.iter().enumerate() {
        let scope = Scope { sources: &sources, here: index };
        for item in &source.items {
            files.add(&scope, item);
        }
    }
    for service in services {
        files.add_service(&sources, service);
    }
    files.finish()
}

/// A parsed source file, with the full names of its types.
struct Source {
    path: &'static str,
    items: Vec<Item>,
    /// For each struct and enumeration: the full name, and whether it is a message.
    names: BTreeMap<String, (String, bool)>,
    oneofs: BTreeMap<String, syn::ItemEnum>,
}

enum Item {
    Message(syn::ItemStruct, String),
    Enumeration(syn::ItemEnum, String),
}

impl Source {
    fn read(path: &'static str, package: &str) -> Source {
        let file = format!("src/{path}");
        println!("cargo::rerun-if-changed={file}");
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
        let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{file}: {error}"));
        let urls = type_urls(&parsed);
        let full_name = |ident: &syn::Ident, attributes: &[syn::Attribute]| {
            let ident = ident.to_string();
            let listed = NAMES.iter().find(|row| row.0 == path && row.1 == ident).map(|row| row.2.to_owned());
            let named = listed.or_else(|| urls.get(&ident).cloned()).or_else(|| documented_name(attributes));
            named.unwrap_or_else(|| format!("{package}.{ident}"))
        };
        let mut source = Source { path, items: Vec::new(), names: BTreeMap::new(), oneofs: BTreeMap::new() };
        for item in parsed.items {
            match item {
                syn::Item::Struct(item) if derives(&item.attrs, "Message") => {
                    let name = full_name(&item.ident, &item.attrs);
                    source.names.insert(item.ident.to_string(), (name.clone(), true));
                    source.items.push(Item::Message(item, name));
                }
                syn::Item::Enum(item) if derives(&item.attrs, "Enumeration") => {
                    let name = full_name(&item.ident, &item.attrs);
                    source.names.insert(item.ident.to_string(), (name.clone(), false));
                    source.items.push(Item::Enumeration(item, name));
                }
                syn::Item::Enum(item) if derives(&item.attrs, "Oneof") => {
                    source.oneofs.insert(item.ident.to_string(), item);
                }
                _ => {}
            }
        }
        source
    }
}

/// Reads the rows `Message => "full.name"` of `type_urls!`.
fn type_urls(file: &syn::File) -> BTreeMap<String, String> {
    let mut urls = BTreeMap::new();
    for item in &file.items {
        let syn::Item::Macro(item) = item else { continue };
        if !item.mac.path.is_ident("type_urls") {
            continue;
        }
        let text = item.mac.tokens.to_string();
        for row in text.split(',').filter(|row| !row.trim().is_empty()) {
            let (name, url) = row.split_once("=>").expect("a row of type_urls");
            let url = url.trim().trim_matches('"').to_owned();
            urls.insert(name.trim().to_owned(), url);
        }
    }
    urls
}

fn derives(attributes: &[syn::Attribute], name: &str) -> bool {
    attributes.iter().filter(|attribute| attribute.path().is_ident("derive")).any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else { return false };
        list.tokens.to_string().split(',').any(|path| path.replace(' ', "") == format!("prost::{name}"))
    })
}

fn documented_name(attributes: &[syn::Attribute]) -> Option<String> {
    let first = attributes.iter().find(|attribute| attribute.path().is_ident("doc"))?;
    let syn::Meta::NameValue(syn::MetaNameValue { value: syn::Expr::Lit(literal), .. }) = &first.meta else {
        return None;
    };
    let syn::Lit::Str(text) = &literal.lit else { return None };
    let text = text.value();
    let name = text.trim().strip_prefix('`')?.strip_suffix('`')?;
    (name.contains('.') && !name.contains([' ', ':', '`'])).then(|| name.to_owned())
}

/// The scope in which type names are resolved.
struct Scope<'s> {
    sources: &'s [Source],
    here: usize,
}

impl Scope<'_> {
    /// The full name of a type, and whether it is a message.
    fn resolve(&self, word: &str) -> (String, bool) {
        if let Some(found) = self.sources[self.here].names.get(word) {
            return found.clone();
        }
        if WELL_KNOWN.iter().any(|(name, ..)| *name == word) {
            return (format!("google.protobuf.{word}"), true);
        }
        let shared = self.sources.iter().filter(|source| SHARED.contains(&source.path));
        let found = shared.filter_map(|source| source.names.get(word)).next();
        found
            .cloned()
            .unwrap_or_else(|| panic!("{}: type {word} is not described", self.sources[self.here].path))
    }
}

/// The files of the descriptor set, by package.
#[derive(Default)]
struct Files(BTreeMap<String, FileDescriptorProto>);

impl Files {
    fn package(&mut self, package: &str) -> &mut FileDescriptorProto {
        self.0.entry(package.to_owned()).or_insert_with(|| FileDescriptorProto {
            name: Some(format!("{package}.proto")),
            package: Some(package.to_owned()),
            syntax: Some("proto3".into()),
            ..FileDescriptorProto::default()
        })
    }

    fn add(&mut self, scope: &Scope<'_>, item: &Item) {
        let (Item::Message(_, full_name) | Item::Enumeration(_, full_name)) = item;
        let (package, names) = split(full_name);
        let file = self.package(&package);
        match item {
            Item::Message(item, _) => {
                let described = message(scope, item, names.last().expect("a name"));
                let into = place(&mut file.message_type, &names);
                // A placeholder may exist, made as the parent of a nested message.
                match into.iter_mut().find(|message| message.name == described.name) {
                    None => into.push(described),
                    Some(placeholder) => {
                        assert!(placeholder.field.is_empty(), "{full_name} is described twice");
                        let nested = std::mem::take(&mut placeholder.nested_type);
                        let enumerations = std::mem::take(&mut placeholder.enum_type);
                        *placeholder = described;
                        placeholder.nested_type.extend(nested);
                        placeholder.enum_type.extend(enumerations);
                    }
                }
            }
            Item::Enumeration(item, _) => {
                let described = enumeration(item, names.last().expect("a name"));
                match &names[..names.len() - 1] {
                    [] => file.enum_type.push(described),
                    parents => {
                        let siblings = place(&mut file.message_type, parents);
                        let parent = named(siblings, parents.last().expect("a parent"));
                        parent.enum_type.push(described);
                    }
                }
            }
        }
    }

    fn add_service(&mut self, sources: &[Source], (package, name, module, rows): &Service) {
        let path = match module.strip_prefix("crate::").expect("a module of ours") {
            "engine" => "engine.rs".to_owned(),
            module => format!("{}.rs", module.replace("::", "/")),
        };
        let here = SOURCES.iter().position(|source| source.0 == path && source.1 == *package);
        let here = here.or_else(|| SOURCES.iter().position(|source| source.0 == path));
        let here = here.unwrap_or_else(|| panic!("{path} is not described"));
        let scope = Scope { sources, here };
        let method = |(shape, name, request, response): &Row| {
            let full_name = |word: &str| {
                let word = word.rsplit("::").next().expect("a word");
                Some(format!(".{}", scope.resolve(word).0))
            };
            MethodDescriptorProto {
                name: Some((*name).to_owned()),
                input_type: full_name(request),
                output_type: full_name(response),
                client_streaming: Some(matches!(shape, Shape::Up | Shape::Both)),
                server_streaming: Some(matches!(shape, Shape::Down | Shape::Both)),
                ..MethodDescriptorProto::default()
            }
        };
        let described = ServiceDescriptorProto {
            name: Some((*name).to_owned()),
            method: rows.iter().map(method).collect(),
            ..ServiceDescriptorProto::default()
        };
        self.package(package).service.push(described);
    }

    /// All files, each after its dependencies.
    fn finish(mut self) -> FileDescriptorSet {
        for (name, file, fields) in WELL_KNOWN {
            let fields = fields.iter().map(|(name, number, kind, label)| field(name, *number, *kind, *label));
            let message = DescriptorProto {
                name: Some((*name).to_owned()),
                field: fields.collect(),
                ..DescriptorProto::default()
            };
            let described = FileDescriptorProto {
                name: Some(format!("google/protobuf/{file}.proto")),
                package: Some("google.protobuf".into()),
                syntax: Some("proto3".into()),
                message_type: vec![message],
                ..FileDescriptorProto::default()
            };
            self.0.insert(format!("google.protobuf.{name}"), described);
        }
        let mut homes = BTreeMap::new();
        for file in self.0.values() {
            let package = file.package();
            for message in &file.message_type {
                homes.insert(format!("{package}.{}", message.name()), file.name().to_owned());
            }
            for enumeration in &file.enum_type {
                homes.insert(format!("{package}.{}", enumeration.name()), file.name().to_owned());
            }
        }
        for file in self.0.values_mut() {
            let mut used = BTreeSet::new();
            file.message_type.iter().for_each(|message| types_of(message, &mut used));
            for method in file.service.iter().flat_map(|service| &service.method) {
                used.extend([method.input_type().to_owned(), method.output_type().to_owned()]);
            }
            // A nested type is in the file of its outermost message.
            let home = |name: &String| {
                let parents = std::iter::successors(Some(name.trim_start_matches('.')), |name| {
                    name.rsplit_once('.').map(|(parent, _)| parent)
                });
                let found = parents.filter_map(|name| homes.get(name)).next();
                found.cloned().unwrap_or_else(|| panic!("{name} has no file"))
            };
            let needed: BTreeSet<String> = used.iter().map(home).filter(|home| home != file.name()).collect();
            file.dependency = needed.into_iter().collect();
        }
        let mut left: Vec<FileDescriptorProto> = self.0.into_values().collect();
        let mut ordered: Vec<FileDescriptorProto> = Vec::new();
        while !left.is_empty() {
            let known: BTreeSet<String> = ordered.iter().map(|file| file.name().to_owned()).collect();
            let (ready, waiting): (Vec<_>, Vec<_>) = left
                .into_iter()
                .partition(|file| file.dependency.iter().all(|needed| known.contains(needed)));
            assert!(!ready.is_empty(), "packages that need each other");
            ordered.extend(ready);
            left = waiting;
        }
        FileDescriptorSet { file: ordered }
    }
}

fn types_of(message: &DescriptorProto, used: &mut BTreeSet<String>) {
    used.extend(message.field.iter().filter_map(|field| field.type_name.clone()));
    message.nested_type.iter().for_each(|nested| types_of(nested, used));
}

/// Splits a full name into package and type names. The first word with a capital letter begins the type names.
fn split(full_name: &str) -> (String, Vec<String>) {
    let words: Vec<&str> = full_name.split('.').collect();
    let first = words.iter().position(|word| word.starts_with(|letter: char| letter.is_ascii_uppercase()));
    let (package, names) = words.split_at(first.expect("a full name"));
    (package.join("."), names.iter().map(ToString::to_string).collect())
}

/// The list that the last of `names` belongs to, within the messages that the others name.
fn place<'m>(mut messages: &'m mut Vec<DescriptorProto>, names: &[String]) -> &'m mut Vec<DescriptorProto> {
    for parent in &names[..names.len() - 1] {
        messages = &mut named(messages, parent).nested_type;
    }
    messages
}

fn named<'m>(messages: &'m mut Vec<DescriptorProto>, name: &str) -> &'m mut DescriptorProto {
    let found = messages.iter().position(|message| message.name() == name).unwrap_or_else(|| {
        messages.push(DescriptorProto { name: Some(name.to_owned()), ..DescriptorProto::default() });
        messages.len() - 1
    });
    &mut messages[found]
}

fn enumeration(item: &syn::ItemEnum, name: &str) -> EnumDescriptorProto {
    let value = |variant: &syn::Variant| {
        let (_, syn::Expr::Lit(literal)) = variant.discriminant.as_ref().expect("a number") else {
            panic!("{name}: a number is expected");
        };
        let syn::Lit::Int(number) = &literal.lit else { panic!("{name}: a number is expected") };
        EnumValueDescriptorProto {
            name: Some(snake_case(&variant.ident.to_string()).to_uppercase()),
            number: Some(number.base10_parse().expect("a number")),
            options: None,
        }
    };
    EnumDescriptorProto {
        name: Some(name.to_owned()),
        value: item.variants.iter().map(value).collect(),
        ..EnumDescriptorProto::default()
    }
}

fn message(scope: &Scope<'_>, item: &syn::ItemStruct, name: &str) -> DescriptorProto {
    let mut described = DescriptorProto { name: Some(name.to_owned()), ..DescriptorProto::default() };
    for member in &item.fields {
        let ident = member.ident.as_ref().expect("a named field").to_string();
        let wire = Wire::read(&member.attrs).unwrap_or_else(|| panic!("{name}.{ident} is not on the wire"));
        let ident = ident.trim_start_matches("r#").to_owned();
        let listed = FIELD_NAMES.iter().find(|row| item.ident == row.0 && ident == row.1);
        let ident = listed.map_or(ident, |row| row.2.to_owned());
        if let Some(oneof) = &wire.oneof {
            let index = described.oneof_decl.len();
            described.oneof_decl.push(OneofDescriptorProto { name: Some(ident), options: None });
            let choices = &scope.sources[scope.here].oneofs[oneof];
            for variant in &choices.variants {
                let wire = Wire::read(&variant.attrs).expect("a choice on the wire");
                let kind = variant.fields.iter().next().map(|field| &field.ty);
                let name = snake_case(&variant.ident.to_string());
                let mut field = wire.field(scope, &name, kind.expect("a choice with a type"));
                field.oneof_index = i32::try_from(index).ok();
                described.field.push(field);
            }
            continue;
        }
        if let Some((key, value)) = &wire.map {
            let entry = format!("{}Entry", camel_case(&ident));
            let value_type = last_argument(&member.ty);
            let value = Wire { kind: value.clone(), number: 2, ..Wire::default() };
            let key = Wire { kind: key.clone(), number: 1, ..Wire::default() };
            described.nested_type.push(DescriptorProto {
                name: Some(entry.clone()),
                field: vec![key.field(scope, "key", value_type), value.field(scope, "value", value_type)],
                options: Some(MessageOptions { map_entry: Some(true), ..MessageOptions::default() }),
                ..DescriptorProto::default()
            });
            let mut repeated = field(&ident, wire.number, Type::Message, Label::Repeated);
            let path = scope.sources[scope.here].names[&item.ident.to_string()].0.clone();
            repeated.type_name = Some(format!(".{path}.{entry}"));
            described.field.push(repeated);
            continue;
        }
        let mut field = wire.field(scope, &ident, &member.ty);
        if wire.is_optional && wire.kind != "message" {
            // proto3 `optional`: presence of a scalar field is a synthetic oneof.
            field.proto3_optional = Some(true);
            field.oneof_index = i32::try_from(described.oneof_decl.len()).ok();
            let name = Some(format!("_{ident}"));
            described.oneof_decl.push(OneofDescriptorProto { name, options: None });
        }
        described.field.push(field);
    }
    described
}

fn field(name: &str, number: i32, kind: Type, label: Label) -> FieldDescriptorProto {
    FieldDescriptorProto {
        name: Some(name.to_owned()),
        number: Some(number),
        label: Some(label.into()),
        r#type: Some(kind.into()),
        json_name: Some(json_name(name)),
        ..FieldDescriptorProto::default()
    }
}

/// The content of a field's `prost` attribute.
#[derive(Default)]
struct Wire {
    kind: String,
    number: i32,
    is_repeated: bool,
    is_optional: bool,
    /// The enumeration's Rust name.
    enumeration: Option<String>,
    oneof: Option<String>,
    /// The types of keys and values.
    map: Option<(String, String)>,
}

impl Wire {
    fn read(attributes: &[syn::Attribute]) -> Option<Wire> {
        let attribute = attributes.iter().find(|attribute| attribute.path().is_ident("prost"))?;
        let mut wire = Wire::default();
        let read = attribute.parse_nested_meta(|meta| {
            let word = meta.path.get_ident().expect("a word").to_string();
            let text = || meta.value()?.parse::<syn::LitStr>().map(|text| text.value());
            match word.as_str() {
                "tag" => wire.number = text()?.parse().expect("a number"),
                "tags" => drop(text()?),
                "repeated" => wire.is_repeated = true,
                "optional" => wire.is_optional = true,
                "enumeration" => {
                    wire.kind = "enumeration".into();
                    wire.enumeration = Some(text()?);
                }
                "oneof" => wire.oneof = Some(text()?),
                "map" | "btree_map" => {
                    let text = text()?;
                    let (key, value) = text.split_once(',').expect("a key and a value");
                    wire.map = Some((key.trim().into(), value.trim().into()));
                }
                "bytes" => {
                    wire.kind = word;
                    if meta.input.peek(syn::Token![=]) {
                        drop(text()?);
                    }
                }
                _ => wire.kind = word,
            }
            Ok(())
        });
        read.unwrap_or_else(|error| panic!("a prost attribute: {error}"));
        Some(wire)
    }

    fn field(&self, scope: &Scope<'_>, name: &str, rust_type: &syn::Type) -> FieldDescriptorProto {
        let label = if self.is_repeated { Label::Repeated } else { Label::Optional };
        let word = match self.kind.as_str() {
            "message" => Some(last_word(rust_type)),
            "enumeration" => {
                self.enumeration.as_deref().map(|path| path.rsplit("::").next().unwrap_or(path).to_owned())
            }
            _ => None,
        };
        let kind = match self.kind.as_str() {
            "string" => Type::String,
            "bytes" => Type::Bytes,
            "bool" => Type::Bool,
            "int32" => Type::Int32,
            "int64" => Type::Int64,
            "uint32" => Type::Uint32,
            "uint64" => Type::Uint64,
            "double" => Type::Double,
            "message" => Type::Message,
            "enumeration" => Type::Enum,
            other => panic!("{name}: kind {other:?}"),
        };
        let mut field = field(name, self.number, kind, label);
        if let Some(word) = word {
            let (full_name, is_message) = scope.resolve(&word);
            assert_eq!(is_message, kind == Type::Message, "{name}");
            field.type_name = Some(format!(".{full_name}"));
        }
        field
    }
}

/// `T` of `Option<T>`, `Vec<T>` or `BTreeMap<K, T>`; otherwise the type itself.
fn last_argument(rust_type: &syn::Type) -> &syn::Type {
    let syn::Type::Path(path) = rust_type else { return rust_type };
    let Some(segment) = path.path.segments.last() else { return rust_type };
    let syn::PathArguments::AngleBracketed(arguments) = &segment.arguments else { return rust_type };
    match arguments.args.last() {
        Some(syn::GenericArgument::Type(inner)) => last_argument(inner),
        _ => rust_type,
    }
}

fn last_word(rust_type: &syn::Type) -> String {
    match last_argument(rust_type) {
        syn::Type::Path(path) => path.path.segments.last().expect("a path").ident.to_string(),
        _ => panic!("a type that is no path"),
    }
}

/// Turns `runtime_path` into `RuntimePath`.
fn camel_case(name: &str) -> String {
    let capital = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect::<String>()
    };
    name.split('_').map(capital).collect()
}

/// Turns `runtime_path` into `runtimePath`, the field's name in JSON.
fn json_name(name: &str) -> String {
    let camel = camel_case(name);
    let first = name.chars().next().into_iter();
    first.chain(camel.chars().skip(1)).collect()
}
