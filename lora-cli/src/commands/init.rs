//! `lora init`: writes a commented recipe.

use lora_train::recipe::TEMPLATE;

use crate::args::InitArguments;
use crate::style::{self, Problem};

/// Writes the template to a new file, or to standard output for `-`.
pub(crate) fn run(arguments: &InitArguments) -> anyhow::Result<()> {
    let path = &arguments.path;
    if path.as_os_str() == "-" {
        style::out(TEMPLATE)?;
        return Ok(());
    }
    if path.is_dir() {
        let reason = format!("`{}` is a folder", path.display());
        let hint = format!("name a file in it: lora init {}", path.join("recipe.toml").display());
        return Err(Problem::new(reason).with_hint(hint).into());
    }
    if path.exists() {
        let reason = format!("`{}` exists, and nothing is overwritten", path.display());
        return Err(Problem::new(reason).with_hint("name another file").into());
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|error| lora_core::Error::write(parent, error))?;
    }
    lora_core::files::write_whole(path, TEMPLATE.as_bytes())?;
    let path = path.display();
    style::say(&format!(
        "wrote {path}\nnext: edit it, then\n  lora data {path}    see the rows as the model will\n  \
         lora plan {path}    see what it will train and need\n  lora train {path}"
    ));
    Ok(())
}
