//! A hub in a thread, on the loopback device, as much of it as the client asks for.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What the hub has and how it behaves; may be changed while it runs.
#[derive(Clone, Default)]
pub(super) struct Hub {
    /// Model, files, and the content of each.
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// The commit of `main`.
    pub(super) commit: String,
    /// Asked for with every request, where set.
    pub(super) token: Option<String>,
    /// Connections of downloads that are cut after half of what was asked for.
    pub(super) cuts: usize,
    /// Sends the whole file whatever part is asked for.
    pub(super) ignores_range: bool,
    /// Answers with this instead.
    pub(super) status: Option<&'static str>,
}

/// One request: path, range, and whether the right token came with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) path: String,
    pub(super) range: Option<String>,
}

pub(super) struct Server {
    pub(super) endpoint: String,
    pub(super) hub: Arc<Mutex<Hub>>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(super) fn start(hub: Hub) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let hub = Arc::new(Mutex::new(hub));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (shared, log) = (hub.clone(), requests.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away early is no mistake.
                let _ = answer(stream.unwrap(), &shared, &log);
            }
        });
        Self { endpoint, hub, requests }
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Hub)) {
        change(&mut self.hub.lock().unwrap());
    }

    /// Downloads of a file, without the questions for its size: from which byte each began.
    pub(super) fn downloads(&self, file: &str) -> Vec<usize> {
        let requests = self.requests.lock().unwrap();
        requests
            .iter()
            .filter(|request| request.path.ends_with(&format!("/{file}")))
            .filter_map(|request| request.range.as_deref()?.strip_prefix("bytes="))
            .filter_map(|range| range.strip_suffix('-')?.parse().ok())
            .collect()
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn answer(
    mut stream: TcpStream,
    hub: &Mutex<Hub>,
    log: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_string();
    let (mut range, mut token) = (None, None);
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => range = Some(value.to_string()),
            "authorization" => token = value.strip_prefix("Bearer ").map(str::to_string),
            _ => {}
        }
    }
    log.lock().unwrap().push(Request { path: path.clone(), range: range.clone() });

    let mut hub = hub.lock().unwrap();
    if let Some(status) = hub.status {
        return send(&mut stream, status, &[], b"", 0);
    }
    if hub.token.is_some() && hub.token != token {
        return send(&mut stream, "401 Unauthorized", &[], b"", 0);
    }
    if let Some(revision) = path.strip_prefix("/api/models/org/name/revision/") {
        if revision != "main" && revision != hub.commit {
            let code = [("x-error-code", "RevisionNotFound".to_string())];
            return send(&mut stream, "404 Not Found", &code, b"", 0);
        }
        let siblings: Vec<_> =
            hub.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let info = serde_json::json!({"sha": hub.commit, "siblings": siblings}).to_string();
        return send(&mut stream, "200 OK", &[], info.as_bytes(), info.len());
    }
    let prefix = format!("/org/name/resolve/{}/", hub.commit);
    let Some(content) = path.strip_prefix(&prefix).and_then(|name| hub.files.get(name)).cloned()
    else {
        return send(&mut stream, "404 Not Found", &[], b"", 0);
    };
    // An etag that depends on the content.
    let sum = content.iter().fold(7u64, |sum, byte| sum.wrapping_mul(31) + u64::from(*byte));
    let mut headers =
        vec![("x-repo-commit", hub.commit.clone()), ("etag", format!("\"{sum:016x}\""))];
    let range = range.as_deref().and_then(|range| range.strip_prefix("bytes=")).unwrap();
    let (from, to) = range.split_once('-').unwrap();
    let from: usize = from.parse().unwrap();
    let to = to.parse().map_or(content.len(), |to: usize| to + 1);
    if hub.ignores_range && to == content.len() {
        return send(&mut stream, "200 OK", &headers, &content, content.len());
    }
    if from >= content.len() {
        return send(&mut stream, "416 Range Not Satisfiable", &headers, b"", 0);
    }
    headers.push(("content-range", format!("bytes {from}-{}/{}", to - 1, content.len())));
    let part = &content[from..to];
    let mut sent = part.len();
    if hub.cuts > 0 && to - from > 1 {
        hub.cuts -= 1;
        sent /= 2;
    }
    send(&mut stream, "206 Partial Content", &headers, &part[..sent], part.len())
}

fn send(
    stream: &mut TcpStream,
    status: &str,
    headers: &[(&str, String)],
    body: &[u8],
    length: usize,
) -> std::io::Result<()> {
    let headers: String =
        headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    write!(
        stream,
        "HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n"
    )?;
    stream.write_all(body)
}
