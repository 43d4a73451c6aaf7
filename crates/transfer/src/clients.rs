//! Limits the threads that wait for clients.
//!
//! A client that sends or receives an archive sets the pace, and blocks a thread meanwhile. All calls share one
//! thread pool, so such calls may use only a part of it.

use std::time::Duration;

use tokio::sync::Semaphore;
use types::{Error, Result};

use crate::blocking;

/// Such calls at once, of all clients together.
const CALLS_MAX: usize = 32;
static CALLS: Semaphore = Semaphore::const_new(CALLS_MAX);
/// How long a further call waits for its turn.
const PLACE_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs work that reads from or writes to a client, on a blocking thread. `ResourceExhausted` if too many calls do
/// so. The work goes on if the caller is cancelled, and counts until it is done.
pub async fn with_client<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let Ok(place) = tokio::time::timeout(PLACE_TIMEOUT, CALLS.acquire()).await else {
        return Err(Error::resource_exhausted(format!(
            "{CALLS_MAX} calls that send or take archives or lists of files wait for their clients already; try again \
             when one of them is done"
        )));
    };
    let place = place.expect("it is never closed");
    blocking(move || {
        let done = work();
        drop(place);
        done
    })
    .await
}

#[cfg(test)]
mod tests {
    use types::ErrorKind;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_call_beyond_the_limit_is_refused_until_another_ends() {
        let all = CALLS.acquire_many(u32::try_from(CALLS_MAX).unwrap()).await.unwrap();
        let error = with_client(|| Ok(())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
        drop(all);
        assert_eq!(with_client(|| Ok(7)).await.unwrap(), 7);
        assert_eq!(CALLS.available_permits(), CALLS_MAX);
    }
}
