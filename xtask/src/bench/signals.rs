//! Stopping a program where it is, and letting it go on.

use std::process::Child;

/// Whether programs can be stopped here.
pub(super) const CAN_STOP: bool = cfg!(unix);

/// Stops it, with all its threads. One that has ended stays as it is.
pub(super) fn stop(child: &Child) {
    #[cfg(unix)]
    send(child, rustix::process::Signal::STOP);
    #[cfg(not(unix))]
    let _ = child;
}

/// Lets it go on, if it was stopped.
pub(super) fn go_on(child: &Child) {
    #[cfg(unix)]
    send(child, rustix::process::Signal::CONT);
    #[cfg(not(unix))]
    let _ = child;
}

#[cfg(unix)]
fn send(child: &Child, signal: rustix::process::Signal) {
    // Where it has ended there is nothing to do; until it is waited for, no other has its number.
    let _ = rustix::process::kill_process(rustix::process::Pid::from_child(child), signal);
}
