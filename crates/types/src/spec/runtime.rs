//! Documents of the OCI runtime spec 1.3.
