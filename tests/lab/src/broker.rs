//! Shares one agent between many clients: each client numbers its channels as it likes, and the broker gives them numbers
//! of their own on the way to the agent and back.
//!
//! A thread reads the agent's link; each client has a thread that reads its socket and one that writes it. What waits for
//! a slow client is bounded by the credit of its streams.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::frame::{Frame, Stream, VERSION};

/// The way to an agent: both directions of a byte stream.
pub(crate) struct Link {
    /// From the agent.
    pub(crate) reader: Box<dyn Read + Send>,
    /// To the agent.
    pub(crate) writer: Box<dyn Write + Send>,
}

/// The one that talks to the agent. Clones share it.
#[derive(Clone)]
pub(crate) struct Broker(Arc<Shared>);

struct Shared {
    agent: Mutex<Box<dyn Write + Send>>,
    state: Mutex<State>,
    over: Condvar,
}

#[derive(Default)]
struct State {
    last_channel: u32,
    last_client: u32,
    channels: HashMap<u32, Route>,
    /// The sockets, to be closed when the agent is gone.
    clients: HashMap<u32, UnixStream>,
    over: bool,
}

/// Where the frames of a channel go.
struct Route {
    client: u32,
    channel: u32,
    sender: Sender<(u32, Frame)>,
}

impl Broker {
    /// Waits for the agent's greeting and starts to serve.
    ///
    /// # Errors
    /// The link ends, or something else than an agent of this version speaks there.
    pub(crate) fn start(mut link: Link) -> Result<Self> {
        match Frame::read(&mut link.reader).context("cannot read what the lab's agent says")? {
            Some((0, Frame::Hello(VERSION))) => (),
            Some(_) => bail!("the lab's agent is of another version"),
            None => bail!("the lab host ended before its agent was there"),
        }
        let broker = Self(Arc::new(Shared {
            agent: Mutex::new(link.writer),
            state: Mutex::default(),
            over: Condvar::new(),
        }));
        let (reading, mut reader) = (broker.clone(), link.reader);
        thread::spawn(move || {
            // However the link ends: no frame will come, and the clients are told by the end of theirs.
            while let Ok(Some((channel, frame))) = Frame::read(&mut reader) {
                reading.to_client(channel, frame);
            }
            reading.shut_down();
            for client in reading.state().clients.values() {
                let _ = client.shutdown(Shutdown::Both);
            }
        });
        Ok(broker)
    }

    /// Connects a client within this process.
    ///
    /// # Errors
    /// No socket pair can be made.
    pub(crate) fn connect(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        self.serve(ours)?;
        Ok(theirs)
    }

    /// Serves a client until it closes its socket.
    ///
    /// # Errors
    /// The socket cannot be duplicated.
    pub(crate) fn serve(&self, socket: UnixStream) -> io::Result<()> {
        let (mut reader, writer) = (socket.try_clone()?, socket.try_clone()?);
        let (sender, frames) = channel();
        let client = {
            let mut state = self.state();
            if state.over {
                return socket.shutdown(Shutdown::Both);
            }
            state.last_client += 1;
            let client = state.last_client;
            state.clients.insert(client, socket);
            client
        };
        thread::spawn(move || write_all(&frames, writer));
        let broker = self.clone();
        thread::spawn(move || {
            while let Ok(Some((channel, frame))) = Frame::read(&mut reader) {
                broker.to_agent(client, channel, &frame, &sender);
            }
            broker.leave(client);
        });
        Ok(())
    }

    /// Takes no more commands, and lets nobody wait for those that run.
    pub(crate) fn shut_down(&self) {
        let mut state = self.state();
        state.over = true;
        state.channels.clear();
        self.0.over.notify_all();
    }

    /// Whether the agent is gone, or somebody shut the broker down.
    pub(crate) fn is_over(&self) -> bool {
        self.state().over
    }

    /// Waits until the agent is gone, or somebody shut the broker down.
    pub(crate) fn wait(&self) {
        let over = self.0.over.wait_while(self.state(), |state| !state.over);
        drop(over.unwrap_or_else(PoisonError::into_inner));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, channel: u32, frame: &Frame) {
        let mut agent = self.0.agent.lock().unwrap_or_else(PoisonError::into_inner);
        // A broken link ends the reader, which tells the clients.
        let _ = frame.write(channel, &mut *agent);
    }

    fn to_agent(&self, client: u32, channel: u32, frame: &Frame, sender: &Sender<(u32, Frame)>) {
        let number = {
            let mut state = self.state();
            let known = state.channels.iter().find_map(|(number, route)| {
                (route.client == client && route.channel == channel).then_some(*number)
            });
            match (known, frame) {
                (Some(number), _) => number,
                (None, Frame::Open(_)) => {
                    state.last_channel += 1;
                    let number = state.last_channel;
                    let sender = sender.clone();
                    let route = Route {
                        client,
                        channel,
                        sender,
                    };
                    state.channels.insert(number, route);
                    number
                }
                (None, Frame::Hangup) if channel == 0 => {
                    drop(state);
                    return self.shut_down();
                }
                // Said before the client knew that the command has ended.
                (None, _) => return,
            }
        };
        self.send(number, frame);
    }

    fn to_client(&self, number: u32, frame: Frame) {
        let mut state = self.state();
        let Some(route) = state.channels.get(&number) else {
            return;
        };
        let last = matches!(frame, Frame::Exit(_) | Frame::Refused(_));
        // A client that left is forgotten by its reader.
        let _ = route.sender.send((route.channel, frame));
        if last {
            state.channels.remove(&number);
        }
    }

    fn leave(&self, client: u32) {
        let orphans: Vec<u32> = {
            let mut state = self.state();
            state.clients.remove(&client);
            let orphans = state
                .channels
                .iter()
                .filter_map(|(number, route)| (route.client == client).then_some(*number))
                .collect();
            state.channels.retain(|_, route| route.client != client);
            orphans
        };
        for number in orphans {
            self.send(number, &Frame::End(Stream::Input));
            self.send(number, &Frame::Hangup);
        }
    }
}

fn write_all(frames: &Receiver<(u32, Frame)>, mut writer: UnixStream) {
    while let Ok((channel, frame)) = frames.recv() {
        if frame.write(channel, &mut writer).is_err() {
            return;
        }
    }
}
