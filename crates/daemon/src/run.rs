//! The daemon's `main`: from parsing arguments to draining the last connections.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use linux::cgroup::Cgroup;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use types::{Context, Error, Result};

use crate::args::{self, Args, Command};
use crate::background::Background;
use crate::config::{self, Config, Flavor, Loaded};
use crate::idle::Idle;
use crate::lock::Lock;
use crate::programs::Programs;
use crate::server::Listener;
use crate::telemetry::{self, Calls};
use crate::traces::Exporter;
use crate::{
    events, identity, import, listen, log, notify, oci_hook, pipes, programs, publish, server, services,
    unmount, wiring,
};

/// Images and volumes contain setuid programs and secrets: only the daemon's user may enter.
const ROOT_MODE: u32 = 0o700;
/// Contains the socket, which a group may be allowed to use.
const STATE_MODE: u32 = 0o711;
/// Worker threads for calls. Stores block on threads of the blocking pool.
const WORKERS: usize = 2;
/// Maximum number of blocking threads: waits for shims, pulls, stores.
const BLOCKING_THREADS_MAX: usize = 128;
/// Idle threads soon release their stacks, because a daemon mostly waits.
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(2);
/// The first kernel release with everything containers need (mount_setattr(2)).
const KERNEL_MIN: (u32, u32, u32) = (5, 12, 0);

/// Runs the daemon or one of its commands. `args[0]` is the program's name.
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
    let args = Args::parse(args)?;
    match args.command {
        Command::Help => print!("{}", args::help(args.flavor)),
        Command::Version => println!("{}", version(args.flavor)),
        Command::ConfigDefault => print!("{}", config::defaults(args.flavor)),
        Command::ConfigDump => print!("{}", loaded(&args)?.dump()),
        Command::ConfigMigrate => print!("{}", loaded(&args)?.migrate()),
        Command::ConfigCheck => {
            warn(&Config::load(&args)?.warnings);
            println!("the configuration is in order");
        }
        Command::Shim(dir) => {
            let Some(shim) = programs.shim else {
                return Err(Error::failed_precondition(
                    "this hoist was built without a shim inside; build it with `cargo xtask build`",
                ));
            };
            println!("{}", programs::write(&dir, wiring::SHIM, shim.bytes)?.display());
        }
        Command::Publish { ref namespace, ref topic } => {
            // A shim passes the address, so that the configuration need not be valid.
            let address = match &args.address {
                Some(address) => config::strip_scheme(address),
                None => Config::load(&args)?.address,
            };
            return publish::publish(&address, namespace, topic);
        }
        Command::OciHook(ref words) => return oci_hook::run(words),
        Command::Import(ref root) => return take_over(&args, root, programs),
        Command::Unmount => return take_down(&args),
        Command::Serve => return serve(&args, programs),
    }
    Ok(())
}

/// In the format that scripts parse, depending on the program's name.
fn version(flavor: Flavor) -> String {
    match flavor {
        Flavor::Hoist => format!("hoist {} (API {})", identity::OWN_VERSION, identity::VERSION),
        Flavor::Containerd => {
            format!("containerd {} {} {}", api::grpc::MODULE, identity::VERSION, identity::OWN_VERSION)
        }
    }
}

/// Reads the files, for a command that prints them.
fn loaded(args: &Args) -> Result<Loaded> {
    let loaded = Loaded::read(args)?;
    warn(&loaded.warnings);
    Ok(loaded)
}

fn warn(warnings: &[String]) {
    warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
}

fn serve(args: &Args, programs: Programs) -> Result<()> {
    let begun = Instant::now();
    // Until `Signals` has a handler of ours. SIGHUP and SIGTERM end a daemon that is starting, SIGUSR1 must not.
    linux::signal::ignore_usr1();
    linux::memory::bound_heap();
    let config = &Config::load(args)?;
    let exporter = log::start(config);
    config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    if let Some(warning) = kernel_warning(linux::release()) {
        tracing::warn!("{warning}");
    }
    set_oom_score(config.oom_score)?;
    if let Some(path) = &config.cgroup {
        enter_cgroup(path)?;
    }
    let _root = Lock::take(&config.root, ROOT_MODE)?;
    let _state = Lock::take(&config.state, STATE_MODE)?;
    let pid_file = config.state.join("daemon.pid");
    std::fs::write(&pid_file, format!("{}\n", std::process::id()))
        .context(|| format!("write {}", pid_file.display()))?;
    let runtime = executor()?;
    let parts = {
        let _inside = runtime.enter();
        wiring::build(config, programs)?
    };
    // Before anything is started that would have to be undone.
    services::check_required(&parts, &config.required_plugins)?;
    let ended = runtime.block_on(run_parts(args, config, &parts, exporter, begun));
    if ended.is_ok() {
        unmount::unless_used(config, &parts.metadata);
    }
    // Waits for containers block threads until the process exits; dropping the runtime would wait for them.
    runtime.shutdown_background();
    ended
}

/// Imports another containerd's images, or describes what would be imported.
fn take_over(args: &Args, root: &Path, programs: Programs) -> Result<()> {
    let source = import::Source::open(root)?;
    if args.dry_run {
        import::describe(&source)?.iter().for_each(|line| println!("{line}"));
        return Ok(());
    }
    let config = &Config::load(args)?;
    log::start(config);
    let _root = Lock::take(&config.root, ROOT_MODE)?;
    let _state = Lock::take(&config.state, STATE_MODE)?;
    // Policies may contact registries.
    let runtime = executor()?;
    let _inside = runtime.enter();
    let parts = wiring::build(config, programs)?;
    let outcome = import::import(&source, &parts.metadata)?;
    let import::Outcome { images, blobs, bytes, leases, present, failures, containers_left, resources_left } =
        outcome;
    println!(
        "took over {images} images, {blobs} blobs of {bytes} bytes, {leases} leases; {present} were here"
    );
    if containers_left > 0 {
        println!("left {containers_left} containers where they are");
    }
    if resources_left > 0 {
        println!("left {resources_left} snapshots and ingests that leases hold: trees are made anew");
    }
    failures.iter().for_each(|failure| eprintln!("not taken over: {failure}"));
    match failures.len() {
        0 => Ok(()),
        count => {
            Err(Error::data_loss(format!("{count} records of {} could not be taken over", root.display())))
        }
    }
}

/// Unmounts what the last daemon left mounted.
fn take_down(args: &Args) -> Result<()> {
    let config = &Config::load(args)?;
    log::start(config);
    if !config.root.exists() {
        return Err(Error::not_found(format!("there is no root directory {}", config.root.display())));
    }
    let _root = Lock::take(&config.root, ROOT_MODE)?;
    let _state = Lock::take(&config.state, STATE_MODE)?;
    match unmount::unmount(config)? {
        0 => println!("nothing was mounted"),
        count => println!("unmounted {count}"),
    }
    Ok(())
}

fn executor() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(THREAD_KEEP_ALIVE)
        .enable_all()
        .build()
        .context(|| "start the executor")
}

/// The warning for a kernel that is too old. Not an error, because distributions backport newer features.
fn kernel_warning(release: (u32, u32, u32)) -> Option<String> {
    let ((major, minor, _), (first_major, first_minor, _)) = (release, KERNEL_MIN);
    (release < KERNEL_MIN).then(|| {
        format!(
            "this kernel is Linux {major}.{minor}, and containers may not start: Linux {first_major}.{first_minor} or newer \
             is needed"
        )
    })
}

/// Sets the daemon's OOM score adjustment (proc_pid_oom_score_adj(5)).
fn set_oom_score(score: i32) -> Result<()> {
    if score == 0 {
        return Ok(());
    }
    let file = "/proc/self/oom_score_adj";
    std::fs::write(file, score.to_string()).context(|| format!("configuration: oom_score: write {file}"))
}

/// Moves the daemon to a cgroup, before it has threads or children. Sets no limits: the cgroup may be shared.
fn enter_cgroup(path: &str) -> Result<()> {
    let entered = Cgroup::share(path).and_then(|cgroup| cgroup.add(std::process::id()));
    entered.map_err(|error| error.context(format!("configuration: cgroup: enter {path}")))
}

async fn run_parts(
    args: &Args,
    config: &Config,
    parts: &wiring::Parts,
    exporter: Option<Exporter>,
    begun: Instant,
) -> Result<()> {
    let (stop, stopping) = watch::channel(false);
    let (silence, silenced) = oneshot::channel();
    let exporting = exporter.map(|exporter| tokio::spawn(exporter.run(silenced)));
    let of_shims = listen::listen_for_events(config)?;
    let of_shims = UnixListener::from_std(of_shims).context(|| "listen for events")?;
    // Before any event that a client may ask for.
    let (history, recorder) = services::History::new(&parts.exchange, parts.engine.clone());
    let mut background = Background::default();
    background.spawn("record events", recorder.run());
    background.spawn("hear shims", task::serve_events(of_shims, parts.shims.clone()));
    let ended = parts.shims.load().await?;
    parts.engine.resume(&ended).await?;
    let idle = Idle::default();
    background.spawn("collect garbage", parts.collector.clone().run(idle.clone()));
    background.spawn("delete files of removed objects", parts.collector.clone().reclaim());
    if !parts.disabled_plugins.restart_monitor() {
        background.spawn("restart monitor", parts.restart_monitor.clone().run());
    }
    background.spawn("drop blobs of unpacked layers", parts.retainer.clone().run());
    background.spawn("tell held events", events::tell_held(parts.metadata.clone(), parts.held.clone()));

    let is_counted = config.metrics.address.is_some() || config.debug.is_some();
    let sources = telemetry::Sources {
        calls: is_counted.then(|| Calls::new(config.metrics.grpc_histogram)),
        collector: parts.collector.clone(),
        metadata: parts.metadata.clone(),
        shims: parts.shims.clone(),
    };
    telemetry::serve(config, &sources, &mut background).await?;
    let router = services::router(parts, history, config).counted(sources.calls);

    // Before a service manager or client can know that the daemon runs: an unhandled signal, even SIGHUP, would kill
    // it.
    let signals = Signals::new()?;
    // Before listening, so that no client can create new ones.
    if let Some(folder) = config.address.parent() {
        pipes::sweep(folder);
    }
    let listener = listen::listen(config)?;
    let mut listeners = vec![Listener::Unix(UnixListener::from_std(listener).context(|| "listen")?)];
    if let Some(tcp) = &config.tcp {
        listeners.push(listen::listen_on_tcp(tcp).await?);
    }
    tracing::info!(address = %config.address.display(), root = %config.root.display(), "hoist daemon is ready");
    if args.flavor == Flavor::Containerd {
        // Scripts that start containerd wait for this line in its log.
        tracing::info!("containerd successfully booted in {:.6}s", begun.elapsed().as_secs_f64());
    }
    notify::notify(notify::READY);
    background.spawn("release unused memory", idle.clone().run(parts.metadata.clone(), parts.engine.clone()));
    let router = Arc::new(router.disturbing(idle));
    let serve = |listener| server::serve(listener, router.clone(), stopping.clone());
    let mut serving: JoinSet<()> = listeners.into_iter().map(serve).collect();
    let ended = wait_for_end(signals, &mut background, args, config, parts).await;
    notify::notify(notify::STOPPING);
    tracing::info!("stopping; containers go on");
    parts.retainer.stop();
    // Fails only if all servers have ended.
    let _ = stop.send(true);
    while let Some(served) = serving.join_next().await {
        served.map_err(Error::broke_down("a server"))?;
    }
    drop(silence);
    if let Some(exporting) = exporting {
        exporting.await.map_err(Error::broke_down("the exporter of traces"))?;
    }
    // Makes durable what interrupted calls had recorded. That fails on a full disk; kernel objects are removed
    // nevertheless.
    let synced = parts.metadata.sync();
    let stopped = parts.engine.stop().await;
    background.stop().await;
    ended.and(synced).and(stopped)
}

/// The signals that the daemon handles. Signals that arrive before `wait_for_end` are kept.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// SIGUSR1: containerd's users send it to have goroutine stacks dumped, and do not expect it to end the daemon.
    user: Signal,
}

impl Signals {
    fn new() -> Result<Signals> {
        let wait = |kind| signal(kind).context(|| "wait for signals");
        Ok(Signals {
            terminate: wait(SignalKind::terminate())?,
            interrupt: wait(SignalKind::interrupt())?,
            hangup: wait(SignalKind::hangup())?,
            user: wait(SignalKind::user_defined1())?,
        })
    }
}

/// Waits for a signal to stop; until then reloads the configuration and logs thread states on request. An error if the
/// daemon must exit because a background task panicked.
async fn wait_for_end(
    mut signals: Signals,
    background: &mut Background,
    args: &Args,
    config: &Config,
    parts: &wiring::Parts,
) -> Result<()> {
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return Ok(()),
            _ = signals.interrupt.recv() => return Ok(()),
            _ = signals.hangup.recv() => reload(args, config, parts),
            _ = signals.user.recv() => telemetry::log_threads(),
            error = background.broken() => return Err(error),
        }
    }
}

/// Applies the reloadable part of a changed configuration. An invalid one changes nothing.
fn reload(args: &Args, config: &Config, parts: &wiring::Parts) {
    notify::notify(&notify::reloading());
    match Config::load(args) {
        Ok(new) => {
            log::reconfigure(&new);
            new.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            for key in config.fixed_differences(&new) {
                tracing::warn!("configuration: {key} changed, and counts from the next start");
            }
            parts.reconfigure(new);
            tracing::info!("the configuration was read again");
        }
        Err(error) => tracing::error!("the configuration stays as it was: {}", error.chain()),
    }
    notify::notify(notify::READY);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kernel_that_is_too_old_is_warned_of() {
        for (release, is_old) in [
            ((4, 18, 0), true),
            ((5, 11, 22), true),
            ((5, 12, 0), false),
            ((5, 14, 0), false),
            ((6, 1, 0), false),
        ] {
            assert_eq!(kernel_warning(release).is_some(), is_old, "{release:?}");
        }
        let warning = kernel_warning((5, 4, 210)).unwrap();
        assert!(warning.contains("Linux 5.4,") && warning.contains("Linux 5.12 or newer"), "{warning}");
    }
}
