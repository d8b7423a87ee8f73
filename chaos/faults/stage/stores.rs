//! Where checkpoints go: a folder, an S3 server behind an HTTP proxy, an HDFS behind a proxy that passes bytes.
//!
//! The servers are those of the project's tests (`scripts/s3.sh`, `scripts/hdfs.sh`). HDFS hands out the address of its data node itself, so only what the
//! name node is asked passes the proxy: enough to be slow or away.

use super::disks::files_below;
use super::events::{Events, StageEventKind};
use super::ports::{self, free_port, loopback};
use super::process::{lock, started_ticks, state};
use super::scripts;
use super::topology::StoreKind;
use super::watchdog::{Watchdog, quoted};
use crate::api::FaultError;
use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use streamshield_proxy::{HttpProxy, Link, Options, TcpProxy};

const BUCKET: &str = "streamshield";
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
const END_TIME_MAX: Duration = Duration::from_secs(10);

/// What stands before a store.
enum Front {
    Nothing,
    Http(HttpProxy),
    Bytes(TcpProxy),
}

/// A server that a script has started: not a child of this process.
#[derive(Clone, Copy, Debug)]
struct Server {
    pid: u32,
    started_ticks: u64,
}

impl Server {
    fn of_file(file: &Path) -> Result<Server> {
        let pid = std::fs::read_to_string(file).with_context(|| file.display().to_string())?.trim().parse()?;
        Ok(Server { pid, started_ticks: started_ticks(pid).context("the server has ended at once")? })
    }

    fn is_alive(&self) -> bool {
        started_ticks(self.pid) == Some(self.started_ticks) && state(self.pid) != Some('Z')
    }

    /// SIGKILL, and waits.
    fn kill(&self) -> Result<()> {
        let deadline = Instant::now() + END_TIME_MAX;
        while self.is_alive() {
            // SAFETY: kill takes plain numbers; the ticks of its start have just said that the id is still its own.
            unsafe { libc::kill(self.pid as i32, libc::SIGKILL) };
            ensure!(Instant::now() < deadline, "process {} was killed and does not end", self.pid);
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// The store of a stage's checkpoints.
pub struct Store {
    kind: StoreKind,
    folder: PathBuf,
    front: Front,
    direct: Option<SocketAddr>,
    server: Mutex<Option<Server>>,
    events: Arc<Events>,
    watchdog: Arc<Watchdog>,
}

impl Store {
    pub(crate) fn start(
        kind: StoreKind,
        folder: PathBuf,
        seed: u64,
        events: Arc<Events>,
        watchdog: Arc<Watchdog>,
    ) -> Result<Store, FaultError> {
        std::fs::create_dir_all(&folder).context("the store's folder")?;
        let mut store = Store { kind, folder, front: Front::Nothing, direct: None, server: Mutex::new(None), events, watchdog };
        if kind == StoreKind::S3 || kind == StoreKind::Hdfs {
            let direct = loopback(free_port()?);
            store.direct = Some(direct);
            store.start_server()?;
            let options = Options::new("store", direct).seed(seed);
            store.front = match kind {
                StoreKind::S3 => Front::Http(HttpProxy::start(options).context("the store's proxy")?),
                _ => Front::Bytes(TcpProxy::start(options).context("the store's proxy")?),
            };
        }
        Ok(store)
    }

    pub fn kind(&self) -> StoreKind {
        self.kind
    }

    /// Of the job file: URL and options. None: there are no checkpoints.
    pub(crate) fn for_job(&self) -> Option<(String, Map<String, Value>)> {
        let none = Map::new();
        match (&self.kind, &self.front) {
            (StoreKind::Folder, _) => Some((format!("file://{}", self.folder.display()), none)),
            (StoreKind::S3, Front::Http(proxy)) => {
                let options = json!({
                    "endpoint": format!("http://{}", proxy.address()),
                    "allow_http": "true",
                    "path_style": "true",
                    "region": "us-east-1",
                    "access_key_id": "test-access-key",
                    "secret_access_key": "test-secret-key",
                });
                Some((format!("s3://{BUCKET}/checkpoints"), options.as_object().cloned().unwrap_or_default()))
            }
            (StoreKind::Hdfs, Front::Bytes(proxy)) => Some((format!("hdfs://{}/checkpoints", proxy.address()), none)),
            _ => None,
        }
    }

    /// The link to the store, which can be slow or away.
    pub fn link(&self) -> Result<&Link, FaultError> {
        match &self.front {
            Front::Http(proxy) => Ok(proxy),
            Front::Bytes(proxy) => Ok(proxy),
            Front::Nothing => {
                Err(FaultError::NotPossibleHere("no network leads to this store: it takes a topology with s3 or hdfs".into()))
            }
        }
    }

    /// Its proxy, which knows requests.
    pub fn http(&self) -> Result<&HttpProxy, FaultError> {
        match &self.front {
            Front::Http(proxy) => Ok(proxy),
            _ => Err(FaultError::NotPossibleHere("requests to this store can't be told apart: it takes a topology with s3".into())),
        }
    }

    fn script(&self) -> Result<PathBuf, FaultError> {
        Ok(scripts::scripts()?.join(if self.kind == StoreKind::S3 { "s3.sh" } else { "hdfs.sh" }))
    }

    /// Starts the server, on the port that was chosen for it, and waits until it serves.
    fn start_server(&self) -> Result<(), FaultError> {
        let direct = self.direct.context("a store with a server has an address")?;
        let folder = self.folder.display().to_string();
        let port = direct.port().to_string();
        let script = self.script()?;
        let stop = format!("{} stop {}", quoted(&script.display().to_string()), quoted(&folder));
        // Until the watchdog knows its process, only the script can end it.
        let undo = self.watchdog.note_undo("the server of the store", &stop)?;
        scripts::run(&script, &["start", &folder, "--port", &port], &[])?;
        let server = Server::of_file(&self.folder.join("pid"))?;
        self.watchdog.note_child(server.pid, server.started_ticks)?;
        undo.forget();
        *lock(&self.server) = Some(server);
        self.events.push(StageEventKind::StoreStarted);
        Ok(())
    }

    /// Ends the name node of an HDFS, or starts it again on its port and its data, and waits until that is done. The data node lives on.
    pub fn set_name_node(&self, is_there: bool) -> Result<(), FaultError> {
        if self.kind != StoreKind::Hdfs {
            return Err(FaultError::NotPossibleHere("the store is no HDFS: it takes a topology with hdfs".into()));
        }
        let (order, event) = if is_there { ("back", StageEventKind::StoreStarted) } else { ("away", StageEventKind::StoreDied) };
        scripts::run(&self.script()?, &["name-node", &self.folder.display().to_string(), order], &[])?;
        self.events.push(event);
        Ok(())
    }

    /// What lies in the store, by name.
    pub fn objects(&self) -> Result<Vec<String>, FaultError> {
        match self.kind {
            StoreKind::Folder => Ok(self.files(&self.folder)),
            StoreKind::S3 => Ok(self.list_bucket()?),
            // Blocks, as the data node keeps them.
            StoreKind::Hdfs => Ok(self.files(&self.folder).into_iter().filter(|name| is_block(name)).collect()),
            StoreKind::None => Err(FaultError::NotPossibleHere("the job has no checkpoints: it takes a topology with a store".into())),
        }
    }

    fn files(&self, root: &Path) -> Vec<String> {
        let name = |file: PathBuf| Some(file.strip_prefix(root).ok()?.display().to_string());
        files_below(root).into_iter().filter_map(name).collect()
    }

    fn direct(&self) -> Result<SocketAddr> {
        self.direct.context("a store with a server has an address")
    }

    fn list_bucket(&self) -> Result<Vec<String>> {
        let (mut names, mut after) = (Vec::new(), String::new());
        loop {
            let path = format!("/{BUCKET}?list-type=2&start-after={after}");
            let answer = ports::get(self.direct()?, &path, ASK_TIMEOUT)?;
            ensure!(answer.code == 200, "the bucket can't be listed: {}", answer.code);
            let text = answer.text();
            let page: Vec<String> = text.split("<Key>").skip(1).filter_map(|rest| Some(rest.split_once("</Key>")?.0.into())).collect();
            after = page.last().cloned().unwrap_or_default();
            names.extend(page);
            if after.is_empty() || !text.contains("<IsTruncated>true") {
                return Ok(names);
            }
        }
    }

    pub fn read(&self, object: &str) -> Result<Vec<u8>, FaultError> {
        match self.kind {
            StoreKind::S3 => {
                let answer = ports::get(self.direct()?, &format!("/{BUCKET}/{object}"), ASK_TIMEOUT)?;
                match answer.code {
                    200 => Ok(answer.body),
                    404 => Err(FaultError::NoTarget(format!("{object} is gone"))),
                    code => Err(FaultError::Harness(anyhow::anyhow!("{object}: the store answers {code}"))),
                }
            }
            _ => match std::fs::read(self.folder.join(object)) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(FaultError::NoTarget(format!("{object} is gone"))),
                read => Ok(read.with_context(|| object.to_string())?),
            },
        }
    }

    /// Replaces an object behind the back of all who use the store.
    pub fn overwrite(&self, object: &str, content: &[u8]) -> Result<(), FaultError> {
        match self.kind {
            StoreKind::S3 => {
                let answer = ports::ask(self.direct()?, "PUT", &format!("/{BUCKET}/{object}"), content, ASK_TIMEOUT)?;
                if answer.code == 200 {
                    Ok(())
                } else {
                    Err(FaultError::Harness(anyhow::anyhow!("{object}: the store answers {}", answer.code)))
                }
            }
            _ => Ok(std::fs::write(self.folder.join(object), content).with_context(|| object.to_string())?),
        }
    }

    pub(crate) fn stop(&self) {
        if let Some(server) = lock(&self.server).take() {
            // What is left is the watchdog's.
            if server.kill().is_ok() {
                self.watchdog.forget_child(server.pid);
            }
        }
    }
}

/// A block of HDFS's data node, not its checksums.
fn is_block(name: &str) -> bool {
    name.rsplit('/').next().is_some_and(|file| file.starts_with("blk_") && !file.ends_with(".meta"))
}
