//! The NBD server against a client of our own: what it says, what it refuses, and what it survives.
#![cfg(all(unix, feature = "nbd"))]

#[path = "support/nbd.rs"]
mod support;

use diffdisk::ErrorKind;
use diffdisk::export::nbd::proto::{cmd_flag, opt, rep};
use diffdisk::export::nbd::{Export, NbdHandle, NbdServer};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use support::*;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ENOTSUP: u32 = 95;

const SIZE: u64 = 8 << 20;

struct World {
    probe: Arc<Probe>,
    server: NbdHandle,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

fn world() -> World {
    world_with(|server| server)
}

fn world_with(tune: impl FnOnce(NbdServer) -> NbdServer) -> World {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let probe = Arc::new(Probe::new(SIZE));
    let server = NbdServer::new()
        .export(Export::new("", probe.clone()).description("a probe"))
        .export(Export::new("sealed", probe.clone()).read_only(true))
        .unix(&path);
    let server = tune(server).spawn().unwrap();
    World { probe, server, path, _directory: directory }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn options_get_the_replies_the_protocol_names() {
    let world = world();
    let client = Client::greet(&world.path);
    let last = |option: u32, data: &[u8]| client.option(option, data).unwrap().last().unwrap().0;
    assert_eq!(last(opt::STARTTLS, &[]), rep::ERR_POLICY);
    assert_eq!(last(11, &[]), rep::ERR_UNSUP, "extended headers");
    assert_eq!(last(0xdead_beef, b"whatever"), rep::ERR_UNSUP);
    assert_eq!(last(opt::LIST, b"x"), rep::ERR_INVALID);
    let list = client.option(opt::LIST, &[]).unwrap();
    assert_eq!(list[0], (rep::SERVER, b"\0\0\0\0a probe".to_vec()));
    assert_eq!(list[1], (rep::SERVER, b"\0\0\0\x06sealed".to_vec()));
    assert_eq!(last(opt::INFO, &go("nobody", &[])), rep::ERR_UNKNOWN);
    assert_eq!(last(opt::INFO, &go("", &[])[..5]), rep::ERR_INVALID);
    assert_eq!(last(opt::GO, &[0xff; 6]), rep::ERR_INVALID);
    assert_eq!(last(opt::INFO, &vec![0; 70 << 10]), rep::ERR_TOO_BIG);
    let about = client.option(opt::INFO, &go("sealed", &[1, 2, 3, 99])).unwrap();
    assert_eq!(about.len(), 4, "export, name, block sizes, ack: {about:?}");
    assert_eq!(about[0].1[10..], [0b101, 0b0000_1111], "read-only: no trim, no zeroes");
    assert_eq!(last(opt::SET_META_CONTEXT, &meta("", &["base:allocation"])), rep::ERR_INVALID, "before structured replies");
    assert_eq!(last(opt::STRUCTURED_REPLY, b"x"), rep::ERR_INVALID);
    assert_eq!(last(opt::STRUCTURED_REPLY, &[]), rep::ACK);
    assert_eq!(last(opt::STRUCTURED_REPLY, &[]), rep::ERR_INVALID, "twice");
    let count = |option: u32, queries: &[&str]| client.option(option, &meta("", queries)).unwrap().len() - 1;
    assert_eq!(count(opt::LIST_META_CONTEXT, &[]), 2);
    assert_eq!(count(opt::LIST_META_CONTEXT, &["base:"]), 1);
    assert_eq!(count(opt::LIST_META_CONTEXT, &["diffdisk:", "base:allocation", "x-other:thing"]), 2);
    assert_eq!(count(opt::SET_META_CONTEXT, &["base:"]), 0, "a wildcard selects nothing");
    assert_eq!(count(opt::SET_META_CONTEXT, &["diffdisk:depth", "base:nothing"]), 1);
    assert_eq!(last(opt::SET_META_CONTEXT, &meta("nobody", &[])), rep::ERR_UNKNOWN);
    assert_eq!(last(opt::ABORT, &[]), rep::ACK);
    assert!(client.is_cut());
    world.server.stop().unwrap();
}

#[test]
fn export_name_starts_without_a_reply_and_cuts_who_asks_for_nobody() {
    let world = world();
    for (client_flags, zeroes) in [(3u32, 0), (1, 124), (0, 124)] {
        let mut client = Client::knock(&world.path);
        client.say(&client_flags.to_be_bytes());
        client.say_option(opt::EXPORT_NAME, b"");
        let answer = client.read(10 + zeroes).unwrap();
        assert_eq!(answer[..8], SIZE.to_be_bytes());
        assert_eq!(client.read_back(5, 10), [0; 10]);
    }
    let client = Client::greet(&world.path);
    client.say_option(opt::EXPORT_NAME, b"nobody");
    assert!(client.is_cut());
}

#[test]
fn whoever_breaks_the_framing_is_cut_off() {
    let world = world();
    let client = Client::knock(&world.path);
    client.say(&0x8000_0003_u32.to_be_bytes());
    assert!(client.is_cut(), "unknown client flags");
    let client = Client::greet(&world.path);
    client.say(b"IHAVEOPS\0\0\0\x03\0\0\0\0");
    assert!(client.is_cut(), "wrong magic of an option");
    let client = Client::greet(&world.path);
    client.say(b"IHAVEOPT\0\0\0\x03\xff\xff\xff\xff");
    assert!(client.is_cut(), "an option of 4 GiB");
    let client = Client::open(&world.path, "");
    client.say(&[0x25; 28]);
    assert!(client.is_cut(), "wrong magic of a request");
    let mut client = Client::open(&world.path, "");
    client.send(DISC, 0, 0, 0, &[]);
    assert!(client.is_cut(), "a goodbye");
    let mut client = Client::open(&world.path, "");
    assert_eq!(client.read_back(0, 1), [0]);
}

#[test]
fn bad_requests_are_answered_and_the_connection_lives() {
    let world = world();
    let mut c = Client::open(&world.path, "");
    let far = SIZE - 100;
    let table: [(u16, u16, u64, u32, u32); 24] = [
        (READ, 0, SIZE, 1, EINVAL),
        (READ, 0, far, 512, EINVAL),
        (READ, 0, u64::MAX - 3, 512, EINVAL),
        (READ, cmd_flag::FAST_ZERO, 0, 512, EINVAL),
        (READ, 1 << 9, 0, 512, EINVAL),
        (READ, 0, 0, u32::MAX, EINVAL),
        (READ, cmd_flag::FUA, 0, 512, 0),
        (READ, 0, 3, 0, 0),
        (TRIM, 0, far, 512, EINVAL),
        (TRIM, cmd_flag::NO_HOLE, 0, 512, EINVAL),
        (TRIM, 0, 0, 0, 0),
        (WRITE_ZEROES, 0, far, 512, ENOSPC),
        (WRITE_ZEROES, cmd_flag::DF, 0, 512, EINVAL),
        (WRITE_ZEROES, cmd_flag::FAST_ZERO, 1, 512, ENOTSUP),
        (WRITE_ZEROES, cmd_flag::FAST_ZERO | cmd_flag::NO_HOLE, 0, 512, ENOTSUP),
        (WRITE_ZEROES, cmd_flag::FAST_ZERO, 512, 1024, 0),
        (FLUSH, 0, 0, 1, EINVAL),
        (FLUSH, cmd_flag::DF, 0, 0, EINVAL),
        (FLUSH, cmd_flag::FUA, 0, 0, 0),
        (BLOCK_STATUS, 0, 0, 0, EINVAL),
        (BLOCK_STATUS, 0, far, 512, EINVAL),
        (CACHE, 0, far, 512, EINVAL),
        (8, 0, 0, 0, EINVAL),
        (0xffff, 0xffff, u64::MAX, u32::MAX, EINVAL),
    ];
    for (command, flags, offset, len, error) in table {
        let outcome = match command {
            READ if len > 512 => {
                let cookie = c.send(READ, flags, offset, len, &[]);
                let (of, outcome) = c.reply((FLUSH, 0, 0, 0)).unwrap();
                assert_eq!(of, cookie);
                outcome
            }
            _ => c.ask(command, flags, offset, len, &[]),
        };
        assert_eq!(outcome.error, error, "command {command} flags {flags} at {offset} of {len}");
    }
    assert_eq!(c.write(far, &[1; 512]), ENOSPC);
    assert_eq!(c.ask(WRITE, cmd_flag::DF, 0, 5, b"hello").error, EINVAL);
    assert_eq!(c.write(0, &[]), 0);
    assert!(world.probe.bytes.lock().unwrap().0.iter().all(|&b| b == 0), "nothing was written");
    assert_eq!(c.write(far, &[7; 100]), 0);
    assert_eq!(c.read_back(far, 100), [7; 100]);
}

#[test]
fn what_is_longer_than_the_maximum_payload_is_refused_and_skipped() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let probe = Arc::new(Probe::new(48 << 20));
    let _server = NbdServer::new().export(Export::new("", probe.clone())).unix(&path).spawn().unwrap();
    let too_long = (32 << 20) + 1;
    for mut c in [Client::open(&path, ""), Client::open_simple(&path, "")] {
        assert_eq!(c.ask(WRITE, 0, 0, too_long, &vec![9; too_long as usize]).error, EINVAL);
        let cookie = c.send(READ, 0, 0, too_long, &[]);
        let expected = if c.structured { EOVERFLOW } else { EINVAL };
        let (of, outcome) = c.reply((FLUSH, 0, 0, 0)).unwrap();
        assert_eq!((of, outcome.error), (cookie, expected));
        assert_eq!(c.ask(WRITE_ZEROES, 0, 0, 40 << 20, &[]).error, 0, "effects may be longer");
        assert_eq!(c.read_back(0, 32 << 20).len(), 32 << 20);
        assert_eq!(c.ask(CACHE, 0, 0, 48 << 20, &[]).error, 0);
    }
}

#[test]
fn a_sealed_export_refuses_changes_and_serves_reads() {
    let world = world();
    let mut c = Client::open(&world.path, "sealed");
    assert_eq!(c.write(0, b"no"), EPERM);
    assert_eq!(c.ask(WRITE_ZEROES, 0, 0, 10, &[]).error, EPERM);
    assert_eq!(c.ask(TRIM, 0, 0, 10, &[]).error, EPERM);
    assert_eq!(c.read_back(0, 2), [0, 0]);
    assert_eq!(c.ask(FLUSH, 0, 0, 0, &[]).error, 0);
}

#[test]
fn random_clients_see_what_the_model_says() {
    let world = world();
    let mut model = vec![0u8; SIZE as usize];
    let mut dice = Dice(0x5eed_cafe);
    let mut clients = [Client::open(&world.path, ""), Client::open_simple(&world.path, ""), Client::open(&world.path, "")];
    for step in 0..3000 {
        let c = &mut clients[dice.roll(3) as usize];
        let longest = if step % 100 == 0 { 3 << 20 } else { [600, 9000, 300_000][step % 3] };
        let len = dice.roll(longest) + 1;
        let offset = dice.roll(SIZE - len + 1);
        let range = offset as usize..(offset + len) as usize;
        let fua = if dice.roll(8) == 0 { cmd_flag::FUA } else { 0 };
        match dice.roll(7) {
            0 | 1 => {
                let data: Vec<u8> = (0..len).map(|_| dice.roll(256) as u8).collect();
                assert_eq!(c.ask(WRITE, fua, offset, len as u32, &data).error, 0);
                model[range].copy_from_slice(&data);
            }
            2 => {
                let flags = fua | if dice.roll(2) == 0 { cmd_flag::NO_HOLE } else { 0 };
                assert_eq!(c.ask(WRITE_ZEROES, flags, offset, len as u32, &[]).error, 0);
                model[range].fill(0);
            }
            3 => {
                assert_eq!(c.ask(TRIM, fua, offset, len as u32, &[]).error, 0);
                let (first, last) = (offset.div_ceil(PIECE) * PIECE, (offset + len) / PIECE * PIECE);
                if first < last {
                    model[first as usize..last as usize].fill(0);
                }
            }
            4 if c.structured => check_status(c, &model, &mut dice, offset, len as u32),
            _ => {
                let df = if c.structured && dice.roll(3) == 0 { cmd_flag::DF } else { 0 };
                let outcome = c.ask(READ, df, offset, len as u32, &[]);
                assert_eq!(outcome.error, 0);
                assert!(outcome.data == model[range], "step {step}: {len} bytes at {offset}");
            }
        }
    }
    assert!(world.probe.bytes.lock().unwrap().0 == model);
    world.server.stop().unwrap();
}

/// Both contexts answer, holes are zeros in the model, and the two contexts agree with each other.
fn check_status(c: &mut Client, model: &[u8], dice: &mut Dice, offset: u64, len: u32) {
    let flags = if dice.roll(2) == 0 { cmd_flag::REQ_ONE } else { 0 };
    let outcome = c.ask(BLOCK_STATUS, flags, offset, len, &[]);
    assert_eq!((outcome.error, outcome.status.len()), (0, 2));
    let mut at = offset as usize;
    for &(len, state) in &outcome.status[0].1 {
        assert!(state == 0 || state == 3);
        assert!(state == 0 || model[at..at + len as usize].iter().all(|&b| b == 0));
        at += len as usize;
    }
    assert_eq!(outcome.status[1].1, outcome.status[0].1, "the probe's holes have depth 3, its data depth 0");
}

#[test]
fn large_transfers_travel_in_every_style() {
    let world = world();
    let mut dice = Dice(77);
    let data: Vec<u8> = (0..5 << 20).map(|_| dice.roll(256) as u8).collect();
    let mut simple = Client::open_simple(&world.path, "");
    let mut structured = Client::open(&world.path, "");
    assert_eq!(structured.ask(WRITE, cmd_flag::FUA, 777, data.len() as u32, &data).error, 0);
    assert_eq!(world.probe.flushes.load(Ordering::SeqCst), 1);
    assert!(simple.read_back(777, data.len() as u32) == data);
    assert!(structured.read_back(777, data.len() as u32) == data);
    let whole = structured.ask(READ, cmd_flag::DF, 777, data.len() as u32, &[]);
    assert!(whole.data == data && whole.chunks == 1);
    let sparse = structured.ask(READ, 0, 0, SIZE as u32, &[]);
    assert!(sparse.holes >= 2 && sparse.data[777..777 + data.len()] == data && sparse.data[6 << 20..].iter().all(|&b| b == 0));
}

#[test]
fn pipelined_requests_are_all_answered_once() {
    let world = world();
    for mut c in [Client::open(&world.path, ""), Client::open_simple(&world.path, "")] {
        let mut open = std::collections::BTreeMap::new();
        for at in 0..200u64 {
            let fill = at as u8 | 1;
            open.insert(c.send(WRITE, 0, at * 4096, 4096, &[fill; 4096]), ());
            if at % 16 == 0 {
                open.insert(c.send(FLUSH, 0, 0, 0, &[]), ());
            }
        }
        while !open.is_empty() {
            let (cookie, outcome) = c.reply((WRITE, 0, 0, 0)).unwrap();
            assert_eq!(outcome.error, 0);
            assert!(open.remove(&cookie).is_some(), "answered twice");
        }
        let mut reads: std::collections::BTreeMap<u64, u8> =
            (0..200u64).map(|at| (c.send(READ, cmd_flag::FUA * u16::from(at % 7 == 0), at * 4096, 4096, &[]), at as u8 | 1)).collect();
        while !reads.is_empty() {
            // The offset is only known once the cookie is: simple replies carry none, structured ones are checked below.
            let (cookie, data) = any_read(&c);
            assert_eq!(data, vec![reads.remove(&cookie).expect("answered once"); 4096]);
        }
    }
}

/// A read reply of one 4 KiB chunk, wherever it was.
fn any_read(c: &Client) -> (u64, Vec<u8>) {
    if c.structured {
        let head = c.read(28).unwrap();
        assert_eq!(head[4..8], [0, 1, 0, 1], "one chunk of data, the last");
        (u64::from_be_bytes(head[8..16].try_into().unwrap()), c.read(4096).unwrap())
    } else {
        let head = c.read(16).unwrap();
        assert_eq!(head[4..8], [0; 4]);
        (u64::from_be_bytes(head[8..16].try_into().unwrap()), c.read(4096).unwrap())
    }
}

#[test]
fn a_flush_covers_what_another_connection_wrote() {
    let world = world();
    let mut one = Client::open(&world.path, "");
    let mut two = Client::open(&world.path, "");
    for round in 1..=10 {
        assert_eq!(one.write(round * 512, &[1; 512]), 0);
        assert_eq!(two.ask(FLUSH, 0, 0, 0, &[]).error, 0);
        assert_eq!(world.probe.writes_at_last_flush.load(Ordering::SeqCst), round);
    }
}

#[test]
fn a_slow_flush_holds_up_nobody() {
    let world = world();
    let mut c = Client::open(&world.path, "");
    world.probe.set_closed(true);
    let flush = c.send(FLUSH, 0, 0, 0, &[]);
    let fua = c.send(WRITE, cmd_flag::FUA, 0, 3, b"abc");
    for round in 0..50 {
        assert_eq!(c.write(4096 + round, &[round as u8]), 0, "while a flush waits");
    }
    wait_until("both wait", || c.read_back(0, 3) == b"abc");
    world.probe.set_closed(false);
    let mut cookies = [c.reply((FLUSH, 0, 0, 0)).unwrap().0, c.reply((FLUSH, 0, 0, 0)).unwrap().0];
    cookies.sort_unstable();
    assert_eq!(cookies, [flush, fua]);
}

#[test]
fn reads_of_cold_data_overlap() {
    let world = world();
    let mut c = Client::open(&world.path, "");
    world.probe.slow_reads.store(5, Ordering::SeqCst);
    let mut cookies: Vec<u64> = (0..32).map(|at| c.send(READ, 0, at * 4096, 4096, &[])).collect();
    while !cookies.is_empty() {
        let cookie = any_read(&c).0;
        cookies.retain(|&c| c != cookie);
    }
    assert!(world.probe.inside.lock().unwrap().1);
}

#[test]
fn more_slow_requests_than_threads_are_answered_all_the_same() {
    let world = world();
    let mut c = Client::open(&world.path, "");
    world.probe.set_closed(true);
    let mut cookies: Vec<u64> = (0..100).map(|_| c.send(FLUSH, 0, 0, 0, &[])).collect();
    world.probe.set_closed(false);
    while !cookies.is_empty() {
        let (cookie, outcome) = c.reply((FLUSH, 0, 0, 0)).unwrap();
        assert_eq!(outcome.error, 0);
        let at = cookies.iter().position(|&c| c == cookie).expect("answered once");
        cookies.swap_remove(at);
    }
}

#[test]
fn a_failing_device_fails_the_request_and_nothing_else() {
    let world = world();
    for mut c in [Client::open(&world.path, ""), Client::open_simple(&world.path, "")] {
        c.write(0, &vec![3; 4 << 20]);
        world.probe.fail_from.store(3 << 20, Ordering::SeqCst);
        let request = (READ, 0, 0, 4 << 20);
        c.send(READ, 0, 0, 4 << 20, &[]);
        assert_eq!(c.reply(request).unwrap().1.error, EIO);
        assert_eq!(c.ask(READ, 0, 3 << 20, 512, &[]).error, EIO);
        assert_eq!(c.read_back((3 << 20) - 512, 512), [3; 512]);
        world.probe.fail_from.store(0, Ordering::SeqCst);
    }
}

#[test]
fn a_panicking_device_ends_one_connection() {
    let world = world();
    let mut victim = Client::open(&world.path, "");
    let mut other = Client::open(&world.path, "");
    world.probe.panics.store(true, Ordering::SeqCst);
    victim.send(READ, 0, 0, 512, &[]);
    assert!(victim.is_cut());
    world.probe.panics.store(false, Ordering::SeqCst);
    assert_eq!(other.read_back(0, 1), [0]);
    drop((victim, other));
    wait_until("guests leave", || world.server.connections() == 0);
}

#[test]
fn a_device_that_shrank_is_never_asked_past_its_end() {
    let world = world();
    let mut c = Client::open(&world.path, "");
    world.probe.shrunk.store(1 << 20, Ordering::SeqCst);
    assert_eq!(c.ask(READ, 0, 1 << 20, 512, &[]).error, EINVAL);
    assert_eq!(c.write(1 << 20, &[1; 512]), ENOSPC);
    assert_eq!(c.read_back((1 << 20) - 512, 512), [0; 512]);
}

#[test]
fn a_stop_answers_what_was_sent_and_flushes() {
    let world = world();
    let mut clients: Vec<Client> = (0..4).map(|_| Client::open(&world.path, "")).collect();
    world.probe.set_closed(true);
    let mut expected = 0;
    for c in &mut clients {
        for at in 0..40u64 {
            let flags = if at % 10 == 9 { cmd_flag::FUA } else { 0 };
            c.send(WRITE, flags, at * 512, 512, &[5; 512]);
            expected += 1;
        }
    }
    let before = world.probe.flushes.load(Ordering::SeqCst);
    let server = world.server;
    let stop = std::thread::spawn(move || server.stop());
    world.probe.set_closed(false);
    let mut answered = 0;
    for c in &clients {
        while let Ok((_, outcome)) = c.reply((WRITE, 0, 0, 0)) {
            assert_eq!(outcome.error, 0);
            answered += 1;
        }
    }
    stop.join().unwrap().unwrap();
    assert_eq!(answered, expected);
    assert!(world.probe.flushes.load(Ordering::SeqCst) > before);
    assert_eq!(world.probe.writes_at_last_flush.load(Ordering::SeqCst), world.probe.writes.load(Ordering::SeqCst));
    assert!(!world.path.exists(), "the socket is removed");
}

#[test]
fn a_stopped_server_gives_the_device_back() {
    for _ in 0..50 {
        let directory = tempfile::tempdir().unwrap();
        let probe = Arc::new(Probe::new(512));
        let path = directory.path().join("s");
        let server = NbdServer::new().export(Export::new("", probe.clone())).unix(&path).spawn().unwrap();
        let _client = Client::open(&path, "");
        let stopper = server.stopper();
        stopper.request();
        server.wait().unwrap();
        assert!(Arc::into_inner(probe).is_some());
        stopper.request();
    }
}

#[test]
fn a_client_that_reads_nothing_delays_a_stop_no_longer_than_allowed() {
    let world = world_with(|server| server.stop_patience(Duration::from_millis(200)));
    let mut stalled = Client::open(&world.path, "");
    for _ in 0..50 {
        stalled.send(READ, 0, 0, 1 << 20, &[]);
    }
    let mut lively = Client::open(&world.path, "");
    assert_eq!(lively.write(0, b"still served"), 0);
    let started = Instant::now();
    world.server.stop().unwrap();
    assert!(started.elapsed() < Duration::from_secs(15));
}

#[test]
fn stalled_handshakes_end_and_the_house_has_a_limit() {
    let world = world_with(|server| server.handshake_patience(Duration::from_millis(300)).max_connections(3));
    let stalled: Vec<Client> = (0..3).map(|_| Client::knock(&world.path)).collect();
    let refused = std::os::unix::net::UnixStream::connect(&world.path).unwrap();
    assert_eq!(std::io::Read::read(&mut &refused, &mut [0]).unwrap(), 0, "the fourth is shown the door");
    assert!(stalled.iter().all(Client::is_cut));
    wait_until("guests leave", || world.server.connections() == 0);
    let mut slow_but_honest = Client::open(&world.path, "");
    assert_eq!(slow_but_honest.read_back(0, 1), [0]);
}

#[test]
fn a_thousand_garbage_connections_change_nothing() {
    let world = world_with(|server| server.max_connections(2000));
    let mut dice = Dice(0x00ba_dc0d_e5ee_d123);
    let mut kept = Vec::new();
    let before = world.probe.writes.load(Ordering::SeqCst);
    for round in 0..1000 {
        let mut c = match dice.roll(4) {
            0 => Client::knock(&world.path),
            1 => Client::greet(&world.path),
            2 => Client::open(&world.path, "sealed"),
            _ => Client::open_simple(&world.path, "sealed"),
        };
        for _ in 0..dice.roll(12) {
            let noise: Vec<u8> = (0..dice.roll(200)).map(|_| dice.roll(256) as u8).collect();
            match dice.roll(4) {
                0 => c.say(&noise),
                1 => c.say_option(dice.roll(12) as u32, &noise),
                _ => {
                    let (command, flags) = (dice.roll(10) as u16, dice.roll(64) as u16);
                    let len = if dice.roll(3) == 0 { dice.roll(1 << 32) as u32 } else { noise.len() as u32 };
                    c.send(command, flags, dice.roll(2 * SIZE), len, &noise);
                }
            }
        }
        match round % 3 {
            0 => drop(c),
            1 => drop(c.socket.shutdown(Shutdown::Write)),
            _ if kept.len() < 100 => kept.push(c),
            _ => {}
        }
    }
    let mut honest = Client::open(&world.path, "");
    assert_eq!(honest.write(1, b"honest"), 0);
    assert_eq!(honest.read_back(0, 8), b"\0honest\0");
    assert_eq!(world.probe.writes.load(Ordering::SeqCst), before + 1, "nobody wrote to the sealed export");
    drop((kept, honest));
    wait_until("guests leave", || world.server.connections() == 0);
    world.server.stop().unwrap();
}

#[test]
fn sockets_are_private_and_taken_over_only_from_the_dead() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let server = || NbdServer::new().export(Export::new("", Arc::new(Probe::new(512)))).unix(&path);
    let first = server().spawn().unwrap();
    assert_eq!(std::fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(server().spawn().unwrap_err().kind(), ErrorKind::InUse);
    first.stop().unwrap();
    assert!(!path.exists());
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "what a killed server leaves");
    let second = server().spawn().unwrap();
    std::fs::rename(&path, directory.path().join("moved")).unwrap();
    std::fs::write(&path, b"precious").unwrap();
    assert_eq!(server().spawn().unwrap_err().kind(), ErrorKind::AlreadyExists);
    second.stop().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"precious", "only our own name is removed");
}

#[test]
fn remote_addresses_want_an_explicit_word() {
    let server = || NbdServer::new().export(Export::new("", Arc::new(Probe::new(512))));
    assert_eq!(server().tcp("0.0.0.0:0").spawn().unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(server().tcp("[::ffff:10.0.0.1]:0").spawn().unwrap_err().kind(), ErrorKind::Denied);
    server().tcp("0.0.0.0:0").allow_remote(true).spawn().unwrap().stop().unwrap();
    let local = server().tcp("127.0.0.1:0").spawn().unwrap();
    assert!(local.addresses()[0].to_string().starts_with("nbd://127.0.0.1:"));
    assert_eq!(NbdServer::new().tcp("127.0.0.1:0").spawn().unwrap_err().kind(), ErrorKind::InvalidInput, "no export");
    assert_eq!(server().spawn().unwrap_err().kind(), ErrorKind::InvalidInput, "no address");
    let twice = server().export(Export::new("", Arc::new(Probe::new(512)))).tcp("127.0.0.1:0");
    assert_eq!(twice.spawn().unwrap_err().kind(), ErrorKind::InvalidInput, "one name twice");
}
