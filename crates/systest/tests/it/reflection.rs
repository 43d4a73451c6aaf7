//! The daemon's gRPC reflection, used by a client that knows none of its messages.

use std::collections::{BTreeMap, BTreeSet};

use api::grpc::reflection::server_reflection_client::ServerReflectionClient;
use api::grpc::reflection::v1alpha::server_reflection_client::ServerReflectionClient as ServerReflectionAlphaClient;
use api::grpc::reflection::{
    ExtensionRequest, MessageRequest, MessageResponse, ServerReflectionRequest, ServerReflectionResponse,
};
use prost::Message;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorProto};
use testkit::Daemon;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::api::walk::covers;
use crate::typed::on;

/// Every service that a client may look for.
const SERVICES: [&str; 20] = [
    "containerd.services.containers.v1.Containers",
    "containerd.services.content.v1.Content",
    "containerd.services.diff.v1.Diff",
    "containerd.services.events.v1.Events",
    "containerd.services.images.v1.Images",
    "containerd.services.introspection.v1.Introspection",
    "containerd.services.leases.v1.Leases",
    "containerd.services.mounts.v1.Mounts",
    "containerd.services.namespaces.v1.Namespaces",
    "containerd.services.sandbox.v1.Controller",
    "containerd.services.sandbox.v1.Store",
    "containerd.services.snapshots.v1.Snapshots",
    "containerd.services.streaming.v1.Streaming",
    "containerd.services.tasks.v1.Tasks",
    "containerd.services.transfer.v1.Transfer",
    "containerd.services.version.v1.Version",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "hoist.engine.v1.Engine",
];

/// What clients find in an `Any`.
const PACKED: [&str; 6] = [
    "containerd.events.TaskExit",
    "containerd.events.ContainerCreate",
    "containerd.runc.v1.Options",
    "containerd.types.transfer.OCIRegistry",
    "io.containerd.cgroups.v1.Metrics",
    "io.containerd.cgroups.v2.Metrics",
];

async fn ask_all(
    channel: &Channel,
    questions: Vec<MessageRequest>,
    is_alpha: bool,
) -> Result<Vec<MessageResponse>, Status> {
    let question = |message| ServerReflectionRequest { host: "here".into(), message_request: Some(message) };
    let asked: Vec<_> = questions.into_iter().map(question).collect();
    let questions = Request::new(tokio_stream::iter(asked.clone()));
    let mut stream = if is_alpha {
        ServerReflectionAlphaClient::new(channel.clone())
            .server_reflection_info(questions)
            .await?
            .into_inner()
    } else {
        ServerReflectionClient::new(channel.clone()).server_reflection_info(questions).await?.into_inner()
    };
    let mut answers = Vec::new();
    for question in asked {
        let ServerReflectionResponse { valid_host, original_request, message_response } =
            stream.message().await?.expect("an answer");
        assert_eq!((valid_host.as_str(), original_request), ("here", Some(question)));
        answers.push(message_response.expect("an answer"));
    }
    assert_eq!(stream.message().await?, None, "no more answers than questions");
    Ok(answers)
}

/// All files that a client comes to know by asking for these names.
async fn files(channel: &Channel, names: &[&str]) -> BTreeMap<String, FileDescriptorProto> {
    let questions = names.iter().map(|name| MessageRequest::FileContainingSymbol((*name).into())).collect();
    let mut files = BTreeMap::new();
    for (name, answer) in names.iter().zip(ask_all(channel, questions, false).await.unwrap()) {
        let MessageResponse::FileDescriptorResponse(answer) = answer else { panic!("{name}: {answer:?}") };
        for (index, file) in answer.file_descriptor_proto.iter().enumerate() {
            let file = FileDescriptorProto::decode(file.as_slice()).expect("a file");
            if index == 0 {
                assert!(name.starts_with(file.package()), "{name} is not in {}", file.name());
            }
            files.insert(file.name().to_owned(), file);
        }
    }
    files
}

fn messages(scope: &str, message: &DescriptorProto, found: &mut BTreeMap<String, DescriptorProto>) {
    let name = format!("{scope}.{}", message.name());
    message.nested_type.iter().for_each(|nested| messages(&name, nested, found));
    found.insert(name, message.clone());
}

#[test]
fn a_client_that_knows_nothing_learns_every_service() {
    covers(&[
        "reflection.v1.ServerReflection.ServerReflectionInfo",
        "reflection.v1alpha.ServerReflection.ServerReflectionInfo",
    ]);
    let daemon = Daemon::start();
    on(&daemon, async |channel| {
        for is_alpha in [false, true] {
            let answer = ask_all(&channel, vec![MessageRequest::ListServices(String::new())], is_alpha).await;
            let [MessageResponse::ListServicesResponse(listed)] = &answer.unwrap()[..] else {
                panic!("no list of services")
            };
            let listed: Vec<&str> = listed.service.iter().map(|service| service.name.as_str()).collect();
            assert_eq!(listed, SERVICES);
        }
        let files = files(&channel, &[&SERVICES[..], &PACKED[..]].concat()).await;
        let mut known = BTreeMap::new();
        let mut enumerations = BTreeSet::new();
        for file in files.values() {
            for needed in &file.dependency {
                assert!(files.contains_key(needed), "{} needs {needed}, which was not sent", file.name());
            }
            file.message_type.iter().for_each(|message| messages(file.package(), message, &mut known));
            enumerations
                .extend(file.enum_type.iter().map(|found| format!(".{}.{}", file.package(), found.name())));
        }
        for (name, message) in &known {
            enumerations.extend(message.enum_type.iter().map(|found| format!(".{name}.{}", found.name())));
        }
        // Every type that is named is described, and every number is used once.
        for (name, message) in &known {
            let numbers: BTreeSet<i32> =
                message.field.iter().map(prost_types::FieldDescriptorProto::number).collect();
            assert_eq!(numbers.len(), message.field.len(), "{name}");
            for field in &message.field {
                let named = field.type_name().trim_start_matches('.');
                match field.r#type() {
                    Type::Message => assert!(known.contains_key(named), "{name}.{}: {named}", field.name()),
                    Type::Enum => {
                        assert!(enumerations.contains(field.type_name()), "{name}.{}", field.name());
                    }
                    _ => assert_eq!(named, ""),
                }
            }
        }
        for packed in PACKED {
            assert!(known.contains_key(packed), "{packed}");
        }

        // Every method that is described is answered: by something else than that nobody knows it.
        let services =
            files.values().flat_map(|file| file.service.iter().map(|service| (file.package(), service)));
        let mut methods = 0;
        for (package, service) in services {
            for method in &service.method {
                assert!(known.contains_key(method.input_type().trim_start_matches('.')));
                assert!(known.contains_key(method.output_type().trim_start_matches('.')));
                let path = format!("/{package}.{}/{}", service.name(), method.name());
                let status = call(&channel, &path).await;
                let is_unknown = status
                    .as_ref()
                    .is_err_and(|status| status.code() == Code::Unimplemented && status.message().is_empty());
                assert!(!is_unknown, "{path}: {status:?}");
                methods += 1;
            }
        }
        assert!(methods > 90, "{methods}");
    });
}

/// Calls a method with an empty message, and hangs up. Routers answer unknown methods without a message.
async fn call(channel: &Channel, path: &str) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.expect("the daemon listens");
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let path = path.parse().expect("a path");
    client.server_streaming(Request::new(()), path, codec).await.map(drop)
}

#[test]
fn questions_without_an_answer_are_answered() {
    let daemon = Daemon::start();
    on(&daemon, async |channel| {
        let extension =
            ExtensionRequest { containing_type: "containerd.types.Mount".into(), extension_number: 100 };
        let questions = vec![
            MessageRequest::FileContainingSymbol("no.such.Thing".into()),
            MessageRequest::FileByFilename("no/such.proto".into()),
            MessageRequest::FileContainingExtension(extension),
            MessageRequest::AllExtensionNumbersOfType("no.such.Thing".into()),
        ];
        for answer in ask_all(&channel, questions, true).await.unwrap() {
            let MessageResponse::ErrorResponse(error) = answer else { panic!("{answer:?}") };
            assert_eq!(error.error_code, i32::from(Code::NotFound), "{error:?}");
        }
        let questions = vec![
            MessageRequest::AllExtensionNumbersOfType("containerd.types.Mount".into()),
            MessageRequest::FileByFilename("google/protobuf/timestamp.proto".into()),
            MessageRequest::FileContainingSymbol("containerd.services.tasks.v1.Tasks.Create".into()),
            MessageRequest::FileContainingSymbol(
                "containerd.services.containers.v1.Container.Runtime".into(),
            ),
            MessageRequest::FileContainingSymbol("containerd.v1.types.Status".into()),
        ];
        let answers = ask_all(&channel, questions, false).await.unwrap();
        assert!(
            matches!(&answers[0], MessageResponse::AllExtensionNumbersResponse(none) if none.extension_number.is_empty())
        );
        for answer in &answers[1..] {
            assert!(matches!(answer, MessageResponse::FileDescriptorResponse(_)), "{answer:?}");
        }
    });
}
