//! A relay between a client and PostgreSQL that cuts the connection at a COMMIT.
//!
//! It finds the COMMIT as sqlx sends it, a simple query of its own, so the connection must not be encrypted.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// Where the next COMMIT is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Cut {
    /// The next COMMIT passes.
    Nowhere,
    /// The server never gets it.
    Before,
    /// The server gets it, and loses its client at once.
    Behind,
    /// The server has answered; the client does not hear it.
    Answer,
    /// The server never gets it, nor that its client is gone, for half a second.
    Silent,
}

/// The relay; it lives as long as the process.
pub struct Relay {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    next: Arc<AtomicU8>,
    cuts: Arc<AtomicUsize>,
}

/// What sqlx sends for it.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";

impl Relay {
    /// Begins to relay to `host:port`.
    ///
    /// # Panics
    ///
    /// If it cannot listen: it is for tests.
    pub fn to(server: &str) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let port = listener.local_addr().expect("a listener has an address").port();
        let (next, cuts) = (Arc::new(AtomicU8::new(0)), Arc::new(AtomicUsize::new(0)));
        let relay = Relay { port, next: next.clone(), cuts: cuts.clone() };
        let server = server.to_owned();
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(&server)) else { continue };
                let (Ok(hearing), Ok(telling)) = (server.try_clone(), client.try_clone()) else { continue };
                let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
                let deaf = Arc::new(AtomicU8::new(0));
                let deafened = deaf.clone();
                thread::spawn(move || from_server(hearing, telling, &deafened));
                let (next, cuts) = (next.clone(), cuts.clone());
                thread::spawn(move || from_client(client, server, &next, &cuts, &deaf));
            }
        });
        relay
    }

    /// Cuts the next COMMIT.
    pub fn arm(&self, cut: Cut) {
        self.next.store(cut as u8, Ordering::SeqCst);
    }

    /// How many it has cut.
    pub fn cuts(&self) -> usize {
        self.cuts.load(Ordering::SeqCst)
    }
}

fn from_client(mut client: TcpStream, mut server: TcpStream, next: &AtomicU8, cuts: &AtomicUsize, deaf: &AtomicU8) {
    let mut buffer = [0; 65_536];
    while let Ok(read @ 1..) = client.read(&mut buffer) {
        let bytes = &buffer[..read];
        let at = bytes.windows(COMMIT.len()).position(|window| window == COMMIT);
        let cut = at.map_or(0, |_| next.swap(0, Ordering::SeqCst));
        if cut == 0 {
            if server.write_all(bytes).is_err() {
                break;
            }
            continue;
        }
        cuts.fetch_add(1, Ordering::SeqCst);
        if cut == Cut::Behind as u8 || cut == Cut::Answer as u8 {
            deaf.store(1, Ordering::SeqCst);
            if server.write_all(bytes).is_err() {
                deaf.store(2, Ordering::SeqCst);
            }
        }
        if cut == Cut::Answer as u8 {
            // Its thread hears the answer and says so.
            while deaf.load(Ordering::SeqCst) == 1 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        client.shutdown(Shutdown::Both).ok();
        if cut == Cut::Silent as u8 {
            thread::sleep(Duration::from_millis(500));
        }
        break;
    }
    client.shutdown(Shutdown::Both).ok();
    server.shutdown(Shutdown::Both).ok();
}

fn from_server(mut server: TcpStream, mut client: TcpStream, deaf: &AtomicU8) {
    let mut buffer = [0; 65_536];
    while let Ok(read @ 1..) = server.read(&mut buffer) {
        if deaf.load(Ordering::SeqCst) > 0 {
            deaf.store(2, Ordering::SeqCst);
        } else if client.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    deaf.store(2, Ordering::SeqCst);
    client.shutdown(Shutdown::Both).ok();
}
