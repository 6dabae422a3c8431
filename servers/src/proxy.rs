//! A way to RabbitMQ on which acknowledgements can be lost, as they are when a client is killed.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Class and method of what is looked for: https://www.rabbitmq.com/resources/specs/amqp0-9-1.xml.
const DELIVER: [u8; 4] = [0, 60, 0, 60];
const ACK: [u8; 4] = [0, 60, 0, 80];
const METHOD: u8 = 1;

/// A port of loopback that leads to a broker. Dropped, its connections are cut.
pub struct Proxy {
    address: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// By channel the first delivery whose acknowledgement is not to arrive, and nothing after it.
    held: Option<BTreeMap<[u8; 2], u64>>,
    connections: Vec<TcpStream>,
    is_cut: bool,
}

impl Proxy {
    /// Leads to a broker at `host:port`.
    pub fn to(broker: &str) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?.to_string();
        let state = Arc::new(Mutex::new(State::default()));
        let (broker, shared) = (broker.to_owned(), state.clone());
        thread::spawn(move || {
            for client in listener.incoming() {
                if lock(&shared).is_cut {
                    return;
                }
                if let Ok(client) = client {
                    // A broker that is not there closes the connection.
                    let _ = connect(&shared, client, &broker);
                }
            }
        });
        Ok(Proxy { address, state })
    }

    /// Where it listens: `127.0.0.1:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The first acknowledgement of what is delivered from now on does not arrive, and nothing that the client sends after it.
    pub fn hold_acknowledgements(&self) {
        lock(&self.state).held = Some(BTreeMap::new());
    }

    /// How many channels something was delivered on since then.
    pub fn delivered(&self) -> usize {
        lock(&self.state).held.as_ref().map_or(0, BTreeMap::len)
    }

    /// Cuts every connection, with what it holds.
    pub fn cut(&self) {
        let mut state = lock(&self.state);
        state.is_cut = true;
        for connection in state.connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        // The listener looks up.
        let _ = TcpStream::connect(&self.address);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connect(state: &Arc<Mutex<State>>, mut client: TcpStream, broker: &str) -> io::Result<()> {
    let mut broker = TcpStream::connect(broker)?;
    lock(state).connections.extend([client.try_clone()?, broker.try_clone()?]);
    let (from_broker, to_client) = (broker.try_clone()?, client.try_clone()?);
    let shared = state.clone();
    thread::spawn(move || copy(from_broker, to_client, |frame| note(&shared, frame)));
    let shared = state.clone();
    thread::spawn(move || {
        let mut greeting = [0; 8];
        if client.read_exact(&mut greeting).and_then(|()| broker.write_all(&greeting)).is_ok() {
            let mut holds = false;
            copy(client, broker, |frame| {
                holds |= is_held(&shared, frame);
                !holds
            });
        }
    });
    Ok(())
}

/// What a broker sends always arrives.
fn note(state: &Mutex<State>, frame: &[u8]) -> bool {
    if let Some((channel, DELIVER, rest)) = method(frame)
        && let Some(held) = &mut lock(state).held
    {
        // The consumer's name, then the tag.
        let tag = rest.first().and_then(|length| number(&rest[1 + usize::from(*length)..]));
        held.entry(channel).or_insert(tag.unwrap_or(0));
    }
    true
}

fn is_held(state: &Mutex<State>, frame: &[u8]) -> bool {
    let Some((channel, ACK, rest)) = method(frame) else { return false };
    let state = lock(state);
    let first = state.held.as_ref().and_then(|held| held.get(&channel));
    first.is_some_and(|first| number(rest) >= Some(*first))
}

fn number(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

/// Channel, method and arguments.
fn method(frame: &[u8]) -> Option<([u8; 2], [u8; 4], &[u8])> {
    let (kind, rest) = frame.split_first()?;
    let (channel, rest) = rest.split_first_chunk()?;
    let (_length, rest) = rest.split_first_chunk::<4>()?;
    let (method, rest) = rest.split_first_chunk()?;
    (*kind == METHOD).then_some((*channel, *method, rest))
}

/// Frame by frame until one side is closed; what may not pass is lost.
fn copy(mut from: TcpStream, mut to: TcpStream, mut may_pass: impl FnMut(&[u8]) -> bool) {
    while let Ok(frame) = read(&mut from) {
        if may_pass(&frame) && to.write_all(&frame).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// Type, channel, length, payload, end.
fn read(from: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 7];
    from.read_exact(&mut frame)?;
    let length = u32::from_be_bytes([frame[3], frame[4], frame[5], frame[6]]);
    frame.resize(8 + length as usize, 0);
    from.read_exact(&mut frame[7..])?;
    Ok(frame)
}
