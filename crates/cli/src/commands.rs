//! What each command does.

use std::io::{IsTerminal, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::engine::{Call, Create, Exited, Follow, LogLine, Streams};
use client::Client;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use types::{Context, Error, ErrorKind, Result};

use crate::args::{self, Cli, Command, System};
use crate::daemon::connect;
use crate::output::{self, memory, rows, short, size, status, text};
use crate::streams::{self, Attached, Raw};
use crate::{archive, parse, pull, template};

/// Runs a command; the answer is the exit code.
pub(crate) async fn run(cli: Cli) -> Result<u8> {
    if let Command::Completion { shell } = cli.command {
        let mut command = <Cli as clap::CommandFactory>::command();
        clap_complete::generate(shell, &mut command, "hoist", &mut std::io::stdout());
        return Ok(0);
    }
    let client = connect(&cli.address).await?;
    match cli.command {
        Command::Run(flags) => run_container(&client, *flags, true).await,
        Command::Create(flags) => run_container(&client, *flags, false).await,
        Command::Start { containers } => {
            each(&containers, async |id| client.call(&Call::Start { id, streams: Streams::default() }).await)
                .await
        }
        Command::Stop { timeout, signal, containers } => {
            let stop = async |id| {
                client.call(&Call::Stop { id, timeout_seconds: timeout, signal: signal.clone() }).await
            };
            each(&containers, stop).await
        }
        Command::Restart { timeout, containers } => {
            let restart = async |id: String| {
                client.call(&Call::Stop { id: id.clone(), timeout_seconds: timeout, signal: None }).await?;
                client.call(&Call::Start { id, streams: Streams::default() }).await
            };
            each(&containers, restart).await
        }
        Command::Kill { signal, containers } => {
            each(&containers, async |id| client.call(&Call::Kill { id, signal: signal.clone() }).await).await
        }
        Command::Rm { force, containers } => {
            each(&containers, async |id| client.call(&Call::Remove { id, force }).await).await
        }
        Command::Pause { containers } => {
            each(&containers, async |id| client.call(&Call::Pause { id }).await).await
        }
        Command::Unpause { containers } => {
            each(&containers, async |id| client.call(&Call::Unpause { id }).await).await
        }
        Command::Ps { all, quiet, no_trunc, format } => {
            ps(&client, all, quiet, no_trunc, format.as_deref()).await
        }
        Command::Logs { follow, tail, timestamps, container } => {
            logs(&client, container, follow, tail, timestamps).await
        }
        Command::Exec(flags) => exec(&client, flags).await,
        Command::Inspect { format, names } => inspect(&client, names, format.as_deref()).await,
        Command::Wait { containers } => {
            for id in containers {
                println!("{}", wait(&client, id, None).await?);
            }
            Ok(0)
        }
        Command::Stats { no_stream, format, containers } => {
            stats(&client, containers, no_stream, format.as_deref()).await
        }
        Command::Pull { quiet, platform, image } => {
            let (name, digest) = pull::pull(&client, &image, platform, quiet).await?;
            if !quiet {
                println!("Digest: {digest}");
            }
            println!("{name}");
            Ok(0)
        }
        Command::Images { quiet, digests, no_trunc, format } => {
            images(&client, quiet, digests, no_trunc, format.as_deref()).await
        }
        Command::Tag { source, target } => {
            client.call(&Call::Tag { source, target }).await?;
            Ok(0)
        }
        Command::Rmi { force, images } => {
            each(&images, async |name| client.call(&Call::RemoveImage { name, force }).await).await
        }
        Command::Load { input } => archive::load(&client, input).await,
        Command::Import { message, file, name } => archive::import(&client, &file, name, message).await,
        Command::Save { output, images } => archive::save(&client, output.as_deref(), images).await,
        Command::Info { format } | Command::System(System::Info { format }) => {
            info(&client, format.as_deref()).await
        }
        Command::System(System::Df { format }) => {
            let answer = client.call(&Call::DiskUsage).await?;
            let columns: &[output::Column] = &[
                ("TYPE", |row| text(row, "Type")),
                ("TOTAL", |row| text(row, "Total")),
                ("ACTIVE", |row| text(row, "Active")),
                ("SIZE", |row| size(row["SizeBytes"].as_u64().unwrap_or(0))),
            ];
            rows(list(&answer), columns, format.as_deref())?;
            Ok(0)
        }
        Command::System(System::Prune { force }) => prune(&client, force).await,
        Command::System(System::Check { repair }) => check(&client, repair).await,
        Command::Version => {
            let info = client.call(&Call::Info).await?;
            println!(
                "Client: hoist {}\nServer: hoist {}",
                env!("CARGO_PKG_VERSION"),
                text(&info, "ServerVersion")
            );
            Ok(0)
        }
        Command::Completion { .. } => Ok(0),
    }
}

/// Does something to several things, goes on after an error, and prints those that worked.
async fn each(names: &[String], act: impl AsyncFn(String) -> Result<Value>) -> Result<u8> {
    let mut code = 0;
    for name in names {
        match act(name.clone()).await {
            Ok(_) => println!("{name}"),
            Err(error) => {
                eprintln!("hoist: {name}: {}", error.chain());
                code = 1;
            }
        }
    }
    Ok(code)
}

pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

async fn run_container(client: &Client, flags: args::Create, start: bool) -> Result<u8> {
    let (detach, interactive, tty) = (flags.detach || !start, flags.interactive, flags.tty);
    if tty && interactive && !detach && !std::io::stdin().is_terminal() {
        return Err(Error::invalid_argument("the input device is not a terminal; leave out -t, or -i"));
    }
    let image = find_source(client, &flags.image).await?;
    let attached = (!detach).then(|| Attached::prepare(interactive, tty)).transpose()?;
    let mut create = create(flags, image)?;
    create.start = start;
    create.streams = attached.as_ref().map(|attached| attached.streams.clone()).unwrap_or_default();
    let feeding = attached.as_ref().and_then(|attached| attached.feed(tty));
    let id = match create_or_pull(client, create).await {
        Ok(id) => id,
        Err(error) => {
            if let Some(attached) = attached {
                attached.abandon();
            }
            return Err(error);
        }
    };
    let Some(attached) = attached else {
        println!("{id}");
        return Ok(0);
    };
    attend(client, &id, None, tty, attached, feeding).await
}

/// Creates the container; pulls its image, or takes the embedded one, if it is not here.
async fn create_or_pull(client: &Client, create: Create) -> Result<String> {
    let call = Call::Create(Box::new(create.clone()));
    let answer = match client.call(&call).await {
        Err(error) if error.is(ErrorKind::NotFound) && error.chain().contains("No such image") => {
            if create.image == "hello" {
                client.call(&Call::Load { path: String::new(), embedded: Some("hello".into()) }).await?;
            } else {
                eprintln!("Unable to find image '{}' locally", create.image);
                pull::pull(client, &create.image, None, false).await?;
            }
            client.call(&call).await?
        }
        other => other?,
    };
    Ok(text(&answer, "Id"))
}

/// An archive or a layout in the place of a name is loaded first.
async fn find_source(client: &Client, image: &str) -> Result<String> {
    let layout = image.strip_prefix("oci:");
    let is_file = image.starts_with(['/', '.']) || layout.is_some();
    if !is_file {
        return Ok(image.to_owned());
    }
    let path = std::path::absolute(layout.unwrap_or(image)).context(|| format!("find {image}"))?;
    let loaded = client.call(&Call::Load { path: path.display().to_string(), embedded: None }).await?;
    let name = list(&loaded).first().map(|image| text(image, "Name"));
    name.ok_or_else(|| Error::invalid_argument(format!("{image} holds no image")))
}

fn create(flags: args::Create, image: String) -> Result<Create> {
    let mut env = Vec::new();
    for file in &flags.env_file {
        let content = std::fs::read_to_string(file).context(|| format!("read {file}"))?;
        let lines = content.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        env.extend(lines.filter_map(parse::env));
    }
    env.extend(flags.env.iter().filter_map(|entry| parse::env(entry)));
    let mut mounts = flags.volume.iter().map(|text| parse::volume(text)).collect::<Result<Vec<_>>>()?;
    for text in &flags.mount {
        mounts.push(parse::mount(text)?);
    }
    let tmpfs = flags.tmpfs.iter().map(|target| api::engine::Mount {
        kind: "tmpfs".into(),
        target: target.split(':').next().unwrap_or_default().into(),
        ..api::engine::Mount::default()
    });
    mounts.extend(tmpfs);
    let mut ports = Vec::new();
    for text in &flags.publish {
        ports.extend(parse::ports(text)?);
    }
    let labels = flags.label.iter().map(|label| label.split_once('=').unwrap_or((label, "")));
    Ok(Create {
        image,
        name: flags.name,
        command: flags.command,
        entrypoint: flags.entrypoint,
        env,
        workdir: flags.workdir,
        user: flags.user,
        hostname: flags.hostname,
        tty: flags.tty,
        interactive: flags.interactive,
        auto_remove: flags.rm,
        read_only: flags.read_only,
        privileged: flags.privileged,
        cap_add: flags.cap_add,
        cap_drop: flags.cap_drop,
        memory: flags.memory.as_deref().map(parse::bytes).transpose()?,
        milli_cpus: flags.cpus.as_deref().map(parse::milli_cpus).transpose()?,
        pids_limit: flags.pids_limit,
        mounts,
        network: flags.network,
        ports,
        restart: parse::restart(&flags.restart)?,
        labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        start: false,
        streams: Streams::default(),
        called_at: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|now| u64::try_from(now.as_nanos()).ok()),
    })
}

/// Stays with a process until it ends: bytes, signals, the size of the terminal.
async fn attend(
    client: &Client,
    id: &str,
    exec: Option<String>,
    tty: bool,
    attached: Attached,
    mut feeding: Option<tokio::task::JoinHandle<bool>>,
) -> Result<u8> {
    let raw = if tty { Some(Raw::enter()?) } else { None };
    let resize = async |client: &Client| {
        if let Some((rows, columns)) = streams::size() {
            // The process may have ended by now.
            let _ = client.call(&Call::Resize { id: id.to_owned(), exec: exec.clone(), rows, columns }).await;
        }
    };
    if tty {
        resize(client).await;
    }
    let what = || "wait for signals";
    let mut interrupt = signal(SignalKind::interrupt()).context(what)?;
    let mut terminate = signal(SignalKind::terminate()).context(what)?;
    let mut window = signal(SignalKind::window_change()).context(what)?;
    let waiting = wait(client, id.to_owned(), exec.clone());
    let mut waiting = std::pin::pin!(waiting);
    let code = loop {
        let typed = async {
            match &mut feeding {
                Some(feeding) => feeding.await.unwrap_or(false),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            code = &mut waiting => break code?,
            detached = typed => {
                feeding = None;
                if !detached {
                    // The end of our input is the end of its; it may have ended by now.
                    let close = Call::CloseStdin { id: id.to_owned(), exec: exec.clone() };
                    let _ = client.call(&close).await;
                }
                if detached {
                    drop(raw);
                    eprintln!("detached from {id}");
                    attached.abandon();
                    return Ok(0);
                }
            }
            _ = window.recv(), if tty => resize(client).await,
            _ = interrupt.recv() => pass_on(client, id, exec.as_deref(), "INT").await,
            _ = terminate.recv() => pass_on(client, id, exec.as_deref(), "TERM").await,
        }
    };
    // What the container wrote last is still on its way.
    attached.drain().await;
    drop(raw);
    Ok(u8::try_from(code).unwrap_or(255))
}

async fn pass_on(client: &Client, id: &str, exec: Option<&str>, signal: &str) {
    if exec.is_none() {
        // It may have ended by now.
        let _ = client.call(&Call::Kill { id: id.to_owned(), signal: signal.to_owned() }).await;
    }
}

async fn wait(client: &Client, id: String, exec: Option<String>) -> Result<u32> {
    let mut answers = client.follow(&Follow::Wait { id, exec }).await?;
    let exited = answers.next::<Exited>().await?;
    exited
        .map(|exited| exited.code)
        .ok_or_else(|| Error::unavailable("the daemon stopped while the container ran; it goes on"))
}

async fn exec(client: &Client, flags: args::Exec) -> Result<u8> {
    if flags.tty && flags.interactive && !flags.detach && !std::io::stdin().is_terminal() {
        return Err(Error::invalid_argument("the input device is not a terminal; leave out -t, or -i"));
    }
    let attached = (!flags.detach).then(|| Attached::prepare(flags.interactive, flags.tty)).transpose()?;
    let feeding = attached.as_ref().and_then(|attached| attached.feed(flags.tty));
    let call = Call::Exec(Box::new(api::engine::Exec {
        id: flags.container,
        command: flags.command,
        env: flags.env.iter().filter_map(|entry| parse::env(entry)).collect(),
        workdir: flags.workdir,
        user: flags.user,
        tty: flags.tty,
        privileged: flags.privileged,
        streams: attached.as_ref().map(|attached| attached.streams.clone()).unwrap_or_default(),
    }));
    let answer = match client.call(&call).await {
        Ok(answer) => answer,
        Err(error) => {
            if let Some(attached) = attached {
                attached.abandon();
            }
            let code = crate::run_code(&error);
            if code == 125 {
                return Err(error);
            }
            eprintln!("hoist: {}", error.chain());
            return Ok(code);
        }
    };
    let Some(attached) = attached else { return Ok(0) };
    attend(client, &text(&answer, "Id"), Some(text(&answer, "ExecId")), flags.tty, attached, feeding).await
}

async fn ps(client: &Client, all: bool, quiet: bool, no_trunc: bool, format: Option<&str>) -> Result<u8> {
    let mut answer = client.call(&Call::List { all }).await?;
    for row in answer.as_array_mut().into_iter().flatten() {
        row["Status"] = status(row).into();
        row["RunningFor"] = format!("{} ago", output::since(row, "CreatedAt").unwrap_or_default()).into();
        if !no_trunc {
            row["ID"] = short(&text(row, "ID")).into();
            let command = text(row, "Command");
            let cut: String = command.chars().take(19).collect();
            row["Command"] =
                if cut == command { format!("\"{command}\"") } else { format!("\"{cut}…\"") }.into();
        }
    }
    if quiet {
        list(&answer).iter().for_each(|row| println!("{}", text(row, "ID")));
        return Ok(0);
    }
    let columns: &[output::Column] = &[
        ("CONTAINER ID", |row| text(row, "ID")),
        ("IMAGE", |row| text(row, "Image")),
        ("COMMAND", |row| text(row, "Command")),
        ("CREATED", |row| text(row, "RunningFor")),
        ("STATUS", |row| text(row, "Status")),
        ("PORTS", |row| text(row, "Ports")),
        ("NAMES", |row| text(row, "Names")),
    ];
    rows(list(&answer), columns, format)?;
    Ok(0)
}

async fn logs(
    client: &Client,
    id: String,
    follow: bool,
    tail: Option<String>,
    timestamps: bool,
) -> Result<u8> {
    let tail = match tail.as_deref() {
        None | Some("all") => None,
        Some(text) => Some(
            text.parse().map_err(|_| Error::invalid_argument(format!("invalid number of lines {text:?}")))?,
        ),
    };
    let mut answers = client.follow(&Follow::Logs { id, follow, tail }).await?;
    while let Some(line) = answers.next::<LogLine>().await? {
        let shown = if timestamps { format!("{} {}", line.time, line.log) } else { line.log };
        let written = match line.stream.as_str() {
            "stderr" => std::io::stderr().write_all(shown.as_bytes()),
            _ => std::io::stdout().write_all(shown.as_bytes()),
        };
        // A pager that was closed wants no more.
        if written.is_err() {
            break;
        }
    }
    Ok(0)
}

async fn inspect(client: &Client, names: Vec<String>, format: Option<&str>) -> Result<u8> {
    let (mut found, mut code) = (Vec::new(), 0);
    for name in names {
        let container = client.call(&Call::Inspect { id: name.clone() }).await;
        let answer = match container {
            Err(error) if error.is(ErrorKind::NotFound) => {
                client.call(&Call::InspectImage { name: name.clone() }).await
            }
            other => other,
        };
        match answer {
            Ok(answer) => found.push(answer),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidArgument) => {
                eprintln!("hoist: no such container or image: {name}");
                code = 1;
            }
            Err(error) => return Err(error),
        }
    }
    match format {
        None | Some("json") => println!("{}", serde_json::to_string_pretty(&found).expect("plain data")),
        Some(format) => {
            for answer in &found {
                println!("{}", template::render(format, answer)?);
            }
        }
    }
    Ok(code)
}

async fn stats(client: &Client, ids: Vec<String>, no_stream: bool, format: Option<&str>) -> Result<u8> {
    const INTERVAL: Duration = Duration::from_millis(500);
    let mut before = client.call(&Call::Stats { ids: ids.clone() }).await?;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let mut now = client.call(&Call::Stats { ids: ids.clone() }).await?;
        for row in now.as_array_mut().into_iter().flatten() {
            let earlier = list(&before).iter().find(|old| old["ID"] == row["ID"]);
            let used = |row: &Value| row["CpuNanos"].as_u64().unwrap_or(0);
            let spent = used(row).saturating_sub(earlier.map_or(used(row), used));
            let number = |key: &str| row[key].as_u64().unwrap_or(0);
            let percent = spent as f64 / INTERVAL.as_nanos() as f64 * 100.0;
            let (usage, limit) = (number("MemoryBytes"), number("MemoryLimit"));
            let share = if limit == 0 { 0.0 } else { usage as f64 / limit as f64 * 100.0 };
            let block = format!("{} / {}", size(number("BlockRead")), size(number("BlockWrite")));
            row["CPUPerc"] = format!("{percent:.2}%").into();
            row["MemUsage"] = format!(
                "{} / {}",
                memory(usage),
                if limit > 1 << 60 { "no limit".into() } else { memory(limit) }
            )
            .into();
            row["MemPerc"] = format!("{share:.2}%").into();
            row["BlockIO"] = block.into();
            row["ID"] = short(&text(row, "ID")).into();
        }
        let columns: &[output::Column] = &[
            ("CONTAINER ID", |row| text(row, "ID")),
            ("NAME", |row| text(row, "Name")),
            ("CPU %", |row| text(row, "CPUPerc")),
            ("MEM USAGE / LIMIT", |row| text(row, "MemUsage")),
            ("MEM %", |row| text(row, "MemPerc")),
            ("BLOCK I/O", |row| text(row, "BlockIO")),
            ("PIDS", |row| text(row, "Pids")),
        ];
        if !no_stream && std::io::stdout().is_terminal() {
            print!("\x1b[H\x1b[J");
        }
        rows(list(&now), columns, format)?;
        if no_stream {
            return Ok(0);
        }
        before = client.call(&Call::Stats { ids: ids.clone() }).await?;
    }
}

async fn images(
    client: &Client,
    quiet: bool,
    digests: bool,
    no_trunc: bool,
    format: Option<&str>,
) -> Result<u8> {
    let mut answer = client.call(&Call::Images).await?;
    for row in answer.as_array_mut().into_iter().flatten() {
        row["CreatedSince"] =
            output::since(row, "CreatedAt").map_or_else(|| "N/A".into(), |age| format!("{age} ago")).into();
        row["Size"] = size(row["SizeBytes"].as_u64().unwrap_or(0)).into();
        if !no_trunc {
            row["ID"] = short(&text(row, "ID")).into();
        }
    }
    if quiet {
        list(&answer).iter().for_each(|row| println!("{}", text(row, "ID")));
        return Ok(0);
    }
    let mut columns: Vec<output::Column> =
        vec![("REPOSITORY", |row| text(row, "Repository")), ("TAG", |row| text(row, "Tag"))];
    if digests {
        columns.push(("DIGEST", |row| text(row, "Digest")));
    }
    columns.extend([
        ("IMAGE ID", (|row: &Value| text(row, "ID")) as fn(&Value) -> String),
        ("CREATED", |row| text(row, "CreatedSince")),
        ("SIZE", |row| text(row, "Size")),
    ]);
    rows(list(&answer), &columns, format)?;
    Ok(0)
}

async fn info(client: &Client, format: Option<&str>) -> Result<u8> {
    let info = client.call(&Call::Info).await?;
    match format {
        Some("json") => println!("{info}"),
        Some(format) => println!("{}", template::render(format, &info)?),
        None => {
            for (key, value) in info.as_object().into_iter().flatten() {
                println!("{key}: {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
            }
        }
    }
    Ok(0)
}

async fn prune(client: &Client, force: bool) -> Result<u8> {
    if !force && std::io::stdin().is_terminal() {
        eprint!("This removes every container that does not run, and what nothing needs. Go on? [y/N] ");
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).context(|| "read the answer")?;
        if !answer.trim().eq_ignore_ascii_case("y") {
            return Ok(1);
        }
    }
    let answer = client.call(&Call::Prune).await?;
    list(&answer["ContainersDeleted"])
        .iter()
        .for_each(|id| println!("deleted container {}", id.as_str().unwrap_or_default()));
    println!(
        "deleted {} blobs and {} trees",
        text(&answer, "BlobsDeleted"),
        text(&answer, "SnapshotsDeleted")
    );
    Ok(0)
}

async fn check(client: &Client, repair: bool) -> Result<u8> {
    let answer = client.call(&Call::Check { repair }).await?;
    let found = list(&answer["Found"]);
    for left in found {
        println!("{}: {}", if repair { "removed" } else { "left over" }, left.as_str().unwrap_or_default());
    }
    if found.is_empty() {
        println!("nothing is left over");
        return Ok(0);
    }
    if !repair {
        eprintln!("hint: hoist system check --repair");
    }
    Ok(u8::from(!repair))
}
