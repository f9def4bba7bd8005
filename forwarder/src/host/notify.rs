//! Words to systemd (`Type=notify`, sd_notify(3)). Without `NOTIFY_SOCKET`, that is when nobody asked, they do nothing.

use sd_notify::NotifyState;

/// Tells systemd that everything is served: dependent units may start.
pub fn notify_ready() {
    send(NotifyState::Ready);
}

/// Tells systemd that the process is ending on purpose.
pub fn notify_stopping() {
    send(NotifyState::Stopping);
}

/// One line for `systemctl status`.
pub fn notify_status(line: &str) {
    send(NotifyState::Status(line));
}

fn send(state: NotifyState<'_>) {
    // Forwarding does not depend on what systemd thinks of it.
    if let Err(error) = sd_notify::notify(false, &[state]) {
        tracing::warn!("cannot notify systemd: {error}");
    }
}
