//! Writes the gRPC clients and servers from the table of services, `src/services.rs`: a line for each call.

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
    use tonic_build::manual::{Builder, Method, Service};

    use super::services::{CALLED, Row, SERVICES, Shape};

    pub(crate) fn write() {
        let services: Vec<Service> = SERVICES.iter().chain(CALLED).map(service).collect();
        Builder::new().build_transport(false).compile(&services);
        super::descriptors::write(SERVICES);
    }

    fn service((package, name, module, rows): &(&str, &str, &str, &[Row])) -> Service {
        let mut service = Service::builder().package(*package).name(*name);
        for row in *rows {
            service = service.method(method(module, *row));
        }
        service.build()
    }

    fn method(module: &str, (shape, name, request, response): Row) -> Method {
        let mut method = Method::builder()
            .name(snake_case(name))
            .route_name(name)
            .input_type(path(module, request))
            .output_type(path(module, response))
            .codec_path("tonic_prost::ProstCodec");
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

    /// `CloseIO` becomes `close_io`.
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
