//! Generates the gRPC clients and servers from the table of services, `src/services.rs`, which has one row for each
//! call.

#[cfg(feature = "grpc")]
mod descriptors;
#[cfg(feature = "grpc")]
#[path = "../src/services.rs"]
#[allow(unreachable_pub, reason = "it is of the library too")]
mod services;

fn main() {
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=src/services.rs");
    #[cfg(feature = "grpc")]
    grpc::write();
}

#[cfg(feature = "grpc")]
mod grpc {
    use std::path::Path;

    use tonic_build::manual::{Builder, Method, Service};

    use super::services::{CALLED, ENCODED, Row, SERVICES, Shape};

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Side {
        Client,
        Server,
    }

    pub(crate) fn write() {
        for side in [Side::Client, Side::Server] {
            let rows = SERVICES.iter().chain(CALLED);
            let services: Vec<Service> = rows.map(|row| service(side, row)).collect();
            let name = if side == Side::Client { "client" } else { "server" };
            let dir = Path::new(&std::env::var_os("OUT_DIR").expect("cargo says it")).join(name);
            std::fs::create_dir_all(&dir).expect("a directory of our own");
            Builder::new()
                .out_dir(dir)
                .build_transport(false)
                .build_client(side == Side::Client)
                .build_server(side == Side::Server)
                .compile(&services);
        }
        super::descriptors::write(SERVICES);
    }

    fn service(side: Side, (package, name, module, rows): &(&str, &str, &str, &[Row])) -> Service {
        let mut service = Service::builder().package(*package).name(*name);
        for row in *rows {
            service = service.method(method(side, module, *row));
        }
        service.build()
    }

    fn method(side: Side, module: &str, (shape, name, request, response): Row) -> Method {
        let answer = path(module, response);
        let (answer, codec) = if side == Side::Server && ENCODED.contains(&response) {
            (format!("crate::grpc::encoded::Encoded<{answer}>"), "crate::grpc::encoded::EncodedCodec")
        } else {
            (answer, "tonic_prost::ProstCodec")
        };
        let mut method = Method::builder()
            .name(snake_case(name))
            .route_name(name)
            .input_type(path(module, request))
            .output_type(answer)
            .codec_path(codec);
        if matches!(shape, Shape::Up | Shape::Both) {
            method = method.client_streaming();
        }
        if matches!(shape, Shape::Down | Shape::Both) {
            method = method.server_streaming();
        }
        method.build()
    }

    fn path(module: &str, name: &str) -> String {
        match name {
            "Empty" => "crate::grpc::Empty".to_owned(),
            name if name.contains("::") => format!("crate::grpc::{name}"),
            name => format!("{module}::{name}"),
        }
    }

    /// Turns `CloseIO` into `close_io`.
    pub(crate) fn snake_case(name: &str) -> String {
        let mut snake = String::new();
        let mut after_lower = false;
        for letter in name.chars() {
            if letter.is_uppercase() && after_lower {
                snake.push('_');
            }
            after_lower = letter.is_lowercase();
            snake.extend(letter.to_lowercase());
        }
        snake
    }
}
