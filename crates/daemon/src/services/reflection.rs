//! `grpc.reflection.v1` and `.v1alpha`: descriptions of the services for generic clients (grpcurl, evans).
//!
//! The descriptors are generated at build time from the messages that are served. Exactly the routed services are
//! listed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::grpc::reflection::server_reflection_server::ServerReflection;
use api::grpc::reflection::v1alpha::server_reflection_server::ServerReflection as ServerReflectionAlpha;
use api::grpc::reflection::{
    DESCRIPTORS, ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse,
    MessageRequest, MessageResponse, ServerReflectionRequest, ServerReflectionResponse, ServiceResponse,
};
use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};
use tokio_stream::StreamExt;
use tonic::{Code, Request, Response, Streaming};

use super::{Answer, Answers};

/// Clones share the descriptors.
#[derive(Clone)]
pub(super) struct Service(Arc<Known>);

struct Known {
    services: BTreeSet<String>,
    files: BTreeMap<String, File>,
    /// Full names of services, methods, messages, fields and enums, with the file of each.
    symbols: BTreeMap<String, String>,
    messages: BTreeSet<String>,
}

struct File {
    encoded: Vec<u8>,
    needs: Vec<String>,
}

impl Service {
    /// `services` are the full names of the routed services.
    pub(super) fn new(services: impl IntoIterator<Item = String>) -> Service {
        let set = FileDescriptorSet::decode(DESCRIPTORS).expect("what the build wrote");
        let mut known = Known {
            services: services.into_iter().collect(),
            files: BTreeMap::new(),
            symbols: BTreeMap::new(),
            messages: BTreeSet::new(),
        };
        set.file.iter().for_each(|file| known.add(file));
        Service(Arc::new(known))
    }

    /// One response per request, until the client closes the stream.
    fn answers(&self, questions: Streaming<ServerReflectionRequest>) -> Answers<ServerReflectionResponse> {
        let known = Arc::clone(&self.0);
        Box::pin(questions.map(move |question| question.map(|question| known.answer(question))))
    }
}

impl Known {
    fn add(&mut self, file: &FileDescriptorProto) {
        let (name, package) = (file.name().to_owned(), file.package());
        let mut symbols = Vec::new();
        for service in &file.service {
            let service_name = format!("{package}.{}", service.name());
            symbols.extend(service.method.iter().map(|method| format!("{service_name}.{}", method.name())));
            symbols.push(service_name);
        }
        symbols.extend(file.enum_type.iter().map(|found| format!("{package}.{}", found.name())));
        file.message_type.iter().for_each(|message| self.add_message(package, message, &mut symbols));
        self.symbols.extend(symbols.into_iter().map(|symbol| (symbol, name.clone())));
        self.files.insert(name, File { encoded: file.encode_to_vec(), needs: file.dependency.clone() });
    }

    fn add_message(&mut self, scope: &str, message: &DescriptorProto, symbols: &mut Vec<String>) {
        let name = format!("{scope}.{}", message.name());
        symbols.extend(message.field.iter().map(|field| format!("{name}.{}", field.name())));
        symbols.extend(message.enum_type.iter().map(|found| format!("{name}.{}", found.name())));
        message.nested_type.iter().for_each(|nested| self.add_message(&name, nested, symbols));
        symbols.push(name.clone());
        self.messages.insert(name);
    }

    fn answer(&self, question: ServerReflectionRequest) -> ServerReflectionResponse {
        let answer = match &question.message_request {
            Some(MessageRequest::FileByFilename(name)) => self.file(name),
            Some(MessageRequest::FileContainingSymbol(symbol)) => match self.symbols.get(symbol) {
                Some(file) => self.file(file),
                None => missing(format!("symbol not found: {symbol}")),
            },
            Some(MessageRequest::FileContainingExtension(asked)) => {
                missing(format!("{} has no extensions: they are not part of proto3", asked.containing_type))
            }
            Some(MessageRequest::AllExtensionNumbersOfType(name)) if self.messages.contains(name) => {
                MessageResponse::AllExtensionNumbersResponse(ExtensionNumberResponse {
                    base_type_name: name.clone(),
                    extension_number: Vec::new(),
                })
            }
            Some(MessageRequest::AllExtensionNumbersOfType(name)) => {
                missing(format!("message not found: {name}"))
            }
            Some(MessageRequest::ListServices(_)) => {
                let service = |name: &String| ServiceResponse { name: name.clone() };
                let service = self.services.iter().map(service).collect();
                MessageResponse::ListServicesResponse(ListServiceResponse { service })
            }
            None => MessageResponse::ErrorResponse(ErrorResponse {
                error_code: Code::InvalidArgument.into(),
                error_message: "nothing is asked".into(),
            }),
        };
        ServerReflectionResponse {
            valid_host: question.host.clone(),
            original_request: Some(question),
            message_response: Some(answer),
        }
    }

    /// A file with all of its dependencies, so that the client need not ask again.
    fn file(&self, name: &str) -> MessageResponse {
        let mut names = Vec::new();
        let mut pending = vec![name];
        while let Some(name) = pending.pop() {
            let Some((name, file)) = self.files.get_key_value(name) else { continue };
            if !names.contains(&name) {
                names.push(name);
                pending.extend(file.needs.iter().map(String::as_str));
            }
        }
        if names.is_empty() {
            return missing(format!("file not found: {name}"));
        }
        let file_descriptor_proto = names.into_iter().map(|name| self.files[name].encoded.clone()).collect();
        MessageResponse::FileDescriptorResponse(FileDescriptorResponse { file_descriptor_proto })
    }
}

fn missing(error_message: String) -> MessageResponse {
    MessageResponse::ErrorResponse(ErrorResponse { error_code: Code::NotFound.into(), error_message })
}

#[tonic::async_trait]
impl ServerReflection for Service {
    type ServerReflectionInfoStream = Answers<ServerReflectionResponse>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<ServerReflectionRequest>>,
    ) -> Answer<Self::ServerReflectionInfoStream> {
        Ok(Response::new(self.answers(request.into_inner())))
    }
}

#[tonic::async_trait]
impl ServerReflectionAlpha for Service {
    type ServerReflectionInfoStream = Answers<ServerReflectionResponse>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<ServerReflectionRequest>>,
    ) -> Answer<Self::ServerReflectionInfoStream> {
        Ok(Response::new(self.answers(request.into_inner())))
    }
}
