//! The page at `/`: three files that need no build step, embedded in the binary.

/// `/`
pub const INDEX: &str = include_str!("index.html");
/// `/app.js`
pub const SCRIPT: &str = include_str!("app.js");
/// `/style.css`
pub const STYLE: &str = include_str!("style.css");
