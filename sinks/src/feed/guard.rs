//! Connections of readers that do not read are closed: a write that makes no progress for a while is an error.
//!
//! The stream's queue is bounded, so a slow reader costs no memory; this closes the connection that hangs on to it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep};

/// A listener whose connections fail when a write stalls.
#[derive(Debug)]
pub(crate) struct Guarded {
    pub(crate) listener: TcpListener,
    pub(crate) stall: Duration,
}

impl axum::serve::Listener for Guarded {
    type Io = GuardedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (GuardedStream, SocketAddr) {
        let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
        // Events are small and each should leave at once.
        let _ = stream.set_nodelay(true);
        (GuardedStream { stream, stall: self.stall, timer: Box::pin(sleep(self.stall)), stalled: false }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that fails when a write stalls.
#[derive(Debug)]
pub(crate) struct GuardedStream {
    stream: TcpStream,
    stall: Duration,
    timer: Pin<Box<Sleep>>,
    stalled: bool,
}

impl GuardedStream {
    fn guard<T>(&mut self, poll: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.stalled = false;
            return poll;
        }
        if !self.stalled {
            self.stalled = true;
            self.timer.as_mut().reset(Instant::now() + self.stall);
        }
        match self.timer.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the reader does not read"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for GuardedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for GuardedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.guard(poll, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.guard(poll, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_flush(cx);
        self.guard(poll, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::serve::Listener;
    use std::future::poll_fn;

    #[tokio::test]
    async fn a_write_that_stalls_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut guarded = Guarded { listener, stall: Duration::from_millis(100) };
        // It connects and never reads.
        let reader = TcpStream::connect(address).await.unwrap();
        let (mut stream, _) = guarded.accept().await;
        let bytes = vec![0; 1 << 16];
        let error = loop {
            match poll_fn(|cx| Pin::new(&mut stream).poll_write(cx, &bytes)).await {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!((error.kind(), error.to_string().as_str()), (io::ErrorKind::TimedOut, "the reader does not read"));
        drop(reader);
    }
}
