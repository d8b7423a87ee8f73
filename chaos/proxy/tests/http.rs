//! HTTP by request: a small store, plain requests, each fault as a client sees it.

use crate::support::*;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use streamshield_proxy::{Door, HttpAction, HttpProxy, HttpRequest, HttpRule, Options};

type Objects = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// PUT keeps a body whose length was stated, GET gives it back, in chunks under `/chunked/`.
struct Store {
    address: SocketAddr,
    objects: Objects,
    torn: Arc<Mutex<Vec<usize>>>,
}

impl Store {
    fn start() -> Store {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let (objects, torn) = (Objects::default(), Arc::new(Mutex::new(Vec::new())));
        let (shared, tearing) = (Arc::clone(&objects), Arc::clone(&torn));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (shared, tearing) = (Arc::clone(&shared), Arc::clone(&tearing));
                std::thread::spawn(move || while serve(&stream, &shared, &tearing).is_some() {});
            }
        });
        Store { address, objects, torn }
    }

    fn get(&self, path: &str) -> Option<Vec<u8>> {
        self.objects.lock().expect("lock").get(path).cloned()
    }

    fn put(&self, path: &str, body: &[u8]) {
        self.objects.lock().expect("lock").insert(path.into(), body.to_vec());
    }
}

fn serve(stream: &TcpStream, objects: &Objects, torn: &Mutex<Vec<usize>>) -> Option<()> {
    let (head, mut body) = read_head(stream)?;
    let mut words = head.split_whitespace();
    let (method, path) = (words.next()?.to_string(), words.next()?.to_string());
    let length = length_of(&head).unwrap_or(0);
    let mut chunk = [0; 4096];
    while body.len() < length {
        match (&*stream).read(&mut chunk) {
            Ok(read @ 1..) => body.extend_from_slice(&chunk[..read]),
            _ => {
                torn.lock().expect("lock").push(body.len());
                return None;
            }
        }
    }
    let answer = match (method.as_str(), objects.lock().expect("lock").get(&path)) {
        ("PUT", _) => b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec(),
        (_, None) => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
        (_, Some(found)) if path.starts_with("/chunked/") => {
            let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            for part in found.chunks(7) {
                answer.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
                answer.extend_from_slice(part);
                answer.extend_from_slice(b"\r\n");
            }
            answer.extend_from_slice(b"0\r\n\r\n");
            answer
        }
        (_, Some(found)) => [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", found.len()).as_bytes(), found].concat(),
    };
    if method == "PUT" {
        objects.lock().expect("lock").insert(path, body);
    }
    (&*stream).write_all(&answer).ok()
}

/// A head, and what was read behind it.
fn read_head(mut stream: &TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            return Some((String::from_utf8_lossy(&bytes[..at]).into_owned(), bytes[at + 4..].to_vec()));
        }
        match stream.read(&mut chunk) {
            Ok(read @ 1..) => bytes.extend_from_slice(&chunk[..read]),
            _ => return None,
        }
    }
}

fn length_of(head: &str) -> Option<usize> {
    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with("content-length:"))?;
    line.split(':').nth(1)?.trim().parse().ok()
}

fn request(stream: &mut TcpStream, method: &str, path: &str, body: &[u8]) -> std::io::Result<()> {
    stream.write_all(format!("{method} {path} HTTP/1.1\r\nHost: store\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes())?;
    stream.write_all(body)
}

/// Status and body; none when the connection ends before the answer does. A body that ends early is given with `false`.
fn answer(stream: &mut TcpStream) -> Option<(u16, Vec<u8>, bool)> {
    let (head, mut body) = read_head(stream)?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    if head.to_ascii_lowercase().contains("chunked") {
        let mut reader = BufReader::new(body.as_slice().chain(&*stream));
        let mut content = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let size = usize::from_str_radix(line.trim(), 16).ok()?;
            let mut part = vec![0; size + 2];
            reader.read_exact(&mut part).ok()?;
            content.extend_from_slice(&part[..size]);
            if size == 0 {
                return Some((status, content, true));
            }
        }
    }
    let length = length_of(&head).unwrap_or(0);
    let mut chunk = [0; 4096];
    while body.len() < length {
        match stream.read(&mut chunk) {
            Ok(read @ 1..) => body.extend_from_slice(&chunk[..read]),
            _ => return Some((status, body, false)),
        }
    }
    Some((status, body, true))
}

fn ask(stream: &mut TcpStream, method: &str, path: &str, body: &[u8]) -> Option<(u16, Vec<u8>, bool)> {
    request(stream, method, path, body).ok()?;
    answer(stream)
}

fn proxy(name: &str, store: &Store) -> HttpProxy {
    HttpProxy::start(Options::new(name, store.address).seed(5)).expect("start")
}

#[test]
fn requests_pass_one_after_the_other_on_one_connection_in_both_framings() {
    let store = Store::start();
    let proxy = proxy("plain", &store);
    let mut client = connect(proxy.address());
    let large: Vec<u8> = (0..300_000).map(|number| (number % 253) as u8).collect();
    assert_eq!(ask(&mut client, "PUT", "/a", &large), Some((200, vec![], true)));
    assert_eq!(ask(&mut client, "GET", "/a", b""), Some((200, large.clone(), true)));
    store.put("/chunked/b", b"in chunks of seven bytes each");
    assert_eq!(ask(&mut client, "GET", "/chunked/b", b""), Some((200, b"in chunks of seven bytes each".to_vec(), true)));
    assert_eq!(ask(&mut client, "GET", "/none", b""), Some((404, vec![], true)));
    let counters = proxy.counters();
    assert_eq!((counters.accepted, counters.requests.frames, counters.responses.frames), (1, 4, 4));
}

#[test]
fn a_share_of_requests_is_refused_with_the_error_of_s3_and_the_store_does_not_hear_of_them() {
    let store = Store::start();
    let proxy = proxy("status", &store);
    let mut client = connect(proxy.address());
    let rule = proxy.add(HttpRule::new(HttpAction::Status(503)).when(HttpRequest::writes).share(0.5));
    let mut refused = 0;
    for number in 0..40 {
        let (status, body, _) = ask(&mut client, "PUT", &format!("/{number}"), b"body").expect("an answer");
        if status == 503 {
            refused += 1;
            assert!(String::from_utf8_lossy(&body).contains("<Code>SlowDown</Code>"));
        }
    }
    assert_eq!((rule.counters().fired, rule.counters().matched), (refused, 40));
    assert!((8..32).contains(&refused), "{refused} of 40");
    assert_eq!(store.objects.lock().expect("lock").len() as u64, 40 - refused);
    drop(rule);
    for status in [429, 500] {
        let _rule = proxy.add(HttpRule::new(HttpAction::Status(status)));
        assert_eq!(ask(&mut client, "GET", "/0", b"").expect("an answer").0, status);
    }
    assert_eq!(ask(&mut client, "PUT", "/last", b"body").expect("an answer").0, 200);
}

#[test]
fn a_refused_head_request_gets_a_head_and_no_body() {
    let store = Store::start();
    let proxy = proxy("head", &store);
    store.put("/a", b"content");
    let mut client = connect(proxy.address());
    let rule = proxy.add(HttpRule::new(HttpAction::Status(503)).times(1));
    request(&mut client, "HEAD", "/a", b"").expect("send");
    let (head, behind) = read_head(&client).expect("a head");
    assert!(head.starts_with("HTTP/1.1 503") && length_of(&head) > Some(0) && behind.is_empty(), "{head}");
    assert_eq!(rule.counters().fired, 1);
    // The next answer on the connection is one.
    assert_eq!(ask(&mut client, "GET", "/a", b""), Some((200, b"content".to_vec(), true)));
}

#[test]
fn a_write_whose_answer_is_lost_was_applied() {
    let store = Store::start();
    let proxy = proxy("ambiguous", &store);
    let rule = proxy.add(HttpRule::new(HttpAction::LoseAnswer).when(HttpRequest::writes).times(1));
    let mut client = connect(proxy.address());
    assert_eq!(ask(&mut client, "PUT", "/a", b"applied"), None);
    assert_eq!((store.get("/a"), rule.counters().fired), (Some(b"applied".to_vec()), 1));
    assert_eq!(ask(&mut connect(proxy.address()), "GET", "/a", b""), Some((200, b"applied".to_vec(), true)));
}

#[test]
fn a_torn_upload_is_not_kept_by_the_store() {
    let store = Store::start();
    let proxy = proxy("torn", &store);
    let rule = proxy.add(HttpRule::new(HttpAction::TearUpload { after_bytes: 1_000 }).when(HttpRequest::writes).times(2));
    let mut client = connect(proxy.address());
    assert_eq!(ask(&mut client, "PUT", "/a", &[7; 100_000]), None);
    eventually("the store sees a part", || !store.torn.lock().expect("lock").is_empty());
    assert!(store.torn.lock().expect("lock")[0] <= 1_000);
    assert_eq!((store.get("/a"), proxy.counters().reset), (None, 1));
    assert_eq!(ask(&mut connect(proxy.address()), "PUT", "/short", &[7; 1_000]), None);
    eventually("the store gets a short one whole", || store.get("/short").is_some());
    assert_eq!((rule.counters().fired, rule.counters().torn), (2, 1));
}

#[test]
fn bodies_come_truncated_shortened_or_with_one_bit_turned() {
    let store = Store::start();
    let proxy = proxy("damaged", &store);
    let content: Vec<u8> = (0..5_000).map(|number| (number % 250) as u8).collect();
    store.put("/a", &content);
    let get = |action: HttpAction| {
        let rule = proxy.add(HttpRule::new(action));
        let answered = ask(&mut connect(proxy.address()), "GET", "/a", b"").expect("a head");
        assert_eq!(rule.counters().fired, 1);
        answered
    };
    assert_eq!(get(HttpAction::Truncate { after_bytes: 100 }), (200, content[..100].to_vec(), false));
    assert_eq!(get(HttpAction::Shorten { to_bytes: 100 }), (200, content[..100].to_vec(), true));
    let (status, turned, is_whole) = get(HttpAction::FlipBit);
    let bits: u32 = turned.iter().zip(&content).map(|(a, b)| (a ^ b).count_ones()).sum();
    assert_eq!((status, turned.len(), is_whole, bits), (200, content.len(), true, 1));
}

#[test]
fn a_hanging_request_ends_with_its_rule() {
    let store = Store::start();
    let proxy = proxy("hangs", &store);
    store.put("/a", b"content");
    for action in [HttpAction::Hang, HttpAction::HangAfterHead] {
        let rule = proxy.add(HttpRule::new(action));
        let mut client = connect(proxy.address());
        request(&mut client, "GET", "/a", b"").expect("send");
        assert!(rule.wait_fired(1, PATIENCE));
        if action == HttpAction::HangAfterHead {
            let (head, body) = read_head(&client).expect("a head");
            assert!(head.contains("200") && body.is_empty());
        }
        assert_eq!(look(&mut client, Duration::from_millis(200)), Sees::Nothing);
        drop(rule);
        assert_eq!(look(&mut client, PATIENCE), Sees::Reset);
    }
}

#[test]
fn requests_are_reset_or_late_and_a_store_can_be_away() {
    let store = Store::start();
    let proxy = proxy("away", &store);
    store.put("/a", b"content");
    {
        let _rule = proxy.add(HttpRule::new(HttpAction::Reset));
        assert_eq!(ask(&mut connect(proxy.address()), "GET", "/a", b""), None);
    }
    {
        let _rule = proxy.add(HttpRule::new(HttpAction::Delay(Duration::from_millis(300))));
        let begin = Instant::now();
        assert!(ask(&mut connect(proxy.address()), "GET", "/a", b"").is_some());
        assert!(begin.elapsed() >= Duration::from_millis(300));
    }
    proxy.set_door(Door::Refuse);
    eventually("it is away", || TcpStream::connect(proxy.address()).is_err());
    proxy.heal();
    eventually("it is back", || TcpStream::connect(proxy.address()).is_ok());
    assert!(ask(&mut connect(proxy.address()), "GET", "/a", b"").is_some());
}

#[test]
fn the_same_seed_refuses_the_same_requests() {
    let refused = |seed: u64| -> String {
        let store = Store::start();
        let proxy = HttpProxy::start(Options::new("seeded", store.address).seed(seed)).expect("start");
        let _rule = proxy.add(HttpRule::new(HttpAction::Status(503)).share(0.5));
        let mut client = connect(proxy.address());
        let mut one = || if ask(&mut client, "GET", "/", b"").expect("an answer").0 == 503 { 'x' } else { '.' };
        (0..64).map(|_| one()).collect()
    };
    let (first, again, other) = (refused(11), refused(11), refused(12));
    assert_eq!(first, again, "seed 11 twice");
    assert_ne!(first, other, "another seed draws otherwise");
}
