//! What callers of the database rely on, on files and on storage that fails.

mod compact;
mod crash;
mod fault;
mod group_commit;
mod queue;
mod reserve;
mod transactions;
