//! Boxed variants of tokio's `spawn` and `spawn_blocking`.
//!
//! tokio compiles its task machinery once for each future type, which came to a sixth of the daemon's code. Here all
//! work has the same boxed type, at the cost of one allocation.

use std::any::Any;
use std::pin::Pin;

use tokio::task::{JoinError, JoinHandle, spawn_blocking};

/// Runs blocking work on a thread of tokio's blocking pool. The work goes on if the caller is dropped.
///
/// # Errors
/// The panic of the work.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    type Done = Box<dyn Any + Send>;
    let work: Box<dyn FnOnce() -> Done + Send> = Box::new(move || Box::new(work()));
    let done = spawn_blocking(work).await?;
    Ok(*done.downcast().expect("it is what the work returned"))
}

/// Spawns work that must not stop half way: it goes on if its handle is dropped. The handle's error is the work's
/// panic.
pub fn unbroken<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    let work: Pin<Box<dyn Future<Output = T> + Send>> = Box::pin(work);
    tokio::spawn(work)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn the_result_is_returned_and_a_panic_is_an_error() {
        assert_eq!(blocking(|| vec![1, 2]).await.unwrap(), [1, 2]);
        assert_eq!(unbroken(async { "done".to_owned() }).await.unwrap(), "done");
        assert!(blocking(|| -> u8 { panic!("on purpose") }).await.unwrap_err().is_panic());
        assert!(unbroken(async { panic!("on purpose") }).await.unwrap_err().is_panic());
    }

    #[tokio::test]
    async fn work_goes_on_without_its_caller() {
        let (tell, told) = mpsc::channel();
        let (go, gone) = mpsc::channel::<()>();
        let mut asked = Box::pin(blocking(move || {
            let _ = gone.recv();
            tell.send("done").unwrap();
        }));
        tokio::select! {
            biased;
            _ = &mut asked => unreachable!("it waits"),
            () = std::future::ready(()) => {}
        }
        drop(asked);
        drop(go);
        assert_eq!(told.recv(), Ok("done"));
    }
}
