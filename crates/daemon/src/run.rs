//! From the first argument to the last connection.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use types::{Context, Error, Result};

use crate::args::{Args, Command, HELP};
use crate::config::{Config, Raw};
use crate::lock::Lock;
use crate::programs::Programs;
use crate::{identity, listen, log, notify, programs, server, services, wiring};

/// Threads for calls. Stores block on threads of their own.
const WORKERS: usize = 2;
/// Threads that may block at once: waits for shims, pulls, stores.
const BLOCKING_THREADS_MAX: usize = 128;
/// Idle threads give their stacks back soon: a daemon mostly waits.
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(2);

/// Runs the daemon, or one of its small commands. `args[0]` is the program's name.
pub fn main(args: Vec<OsString>, programs: Programs) -> ExitCode {
    match run(args, programs) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hoist daemon: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}

fn run(args: Vec<OsString>, programs: Programs) -> Result<()> {
    let args = Args::parse(args.into_iter().skip(1))?;
    match args.command {
        Command::Help => print!("{HELP}"),
        Command::Version => println!("hoist {} (API {})", identity::OWN_VERSION, identity::VERSION),
        Command::ConfigDefault => print!("{}", Raw::default().to_toml()),
        Command::ConfigDump => print!("{}", Raw::load(&args)?.to_toml()),
        Command::ConfigCheck => {
            Config::load(&args)?;
            println!("the configuration is in order");
        }
        Command::Shim(dir) => {
            let Some(shim) = programs.shim else {
                return Err(Error::failed_precondition(
                    "this hoist was built without a shim inside; build it with `cargo xtask build`",
                ));
            };
            println!("{}", programs::write(&dir, wiring::SHIM, shim)?.display());
        }
        Command::Serve => return serve(&Config::load(&args)?, programs),
    }
    Ok(())
}

fn serve(config: &Config, programs: Programs) -> Result<()> {
    log::start(config);
    let _root = Lock::take(&config.root)?;
    let _state = Lock::take(&config.state)?;
    let pid_file = config.state.join("daemon.pid");
    std::fs::write(&pid_file, format!("{}\n", std::process::id()))
        .context(|| format!("write {}", pid_file.display()))?;
    let parts = wiring::build(config, programs)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(THREAD_KEEP_ALIVE)
        .enable_all()
        .build()
        .context(|| "start the executor")?;
    runtime.block_on(run_parts(config, &parts))?;
    // Waits for containers stand on blocking threads; they end with the process.
    runtime.shutdown_background();
    Ok(())
}

async fn run_parts(config: &Config, parts: &wiring::Parts) -> Result<()> {
    let (stop, stopping) = watch::channel(false);
    let events = listen::listen_for_events(&wiring::ttrpc_address(&config.address))?;
    let events = UnixListener::from_std(events).context(|| "listen for events")?;
    tokio::spawn(task::serve_events(events, parts.shims.clone()));
    let ended = parts.shims.load().await?;
    parts.engine.resume(&ended).await?;
    tokio::spawn(parts.collector.clone().run());

    let listener = listen::listen(config)?;
    let listener = UnixListener::from_std(listener).context(|| "listen")?;
    tracing::info!(address = %config.address.display(), root = %config.root.display(), "hoist daemon is ready");
    notify::notify(notify::READY);
    let serving = tokio::spawn(server::serve(listener, services::router(parts), stopping));
    wait_for_signal().await?;
    notify::notify(notify::STOPPING);
    tracing::info!("stopping; containers go on");
    // The other end is gone only if serving has ended.
    let _ = stop.send(true);
    serving.await.context_join()?;
    parts.engine.stop().await
}

async fn wait_for_signal() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context(|| "wait for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context(|| "wait for signals")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

trait ContextJoin {
    fn context_join(self) -> Result<()>;
}

impl ContextJoin for std::result::Result<(), tokio::task::JoinError> {
    fn context_join(self) -> Result<()> {
        self.map_err(|panic| Error::internal("the server broke down").with_source(panic))
    }
}
