//! Commands for a running `lazaret up`.

use anyhow::{Context, bail, ensure};
use model::{Digest, GuestId, ItemId};
use proto::v1;
use proto::v1::admin_reply::Body as Reply;
use proto::v1::admin_request::Body as Request;
use proto::v1::order::Action;

use crate::args::{
    DetectionsArgs, HoldersArgs, Output, QuarantineArgs, QuarantineCommand, ReleaseArgs, TokenArgs,
};
use crate::place::Place;
use crate::{json, show};

fn call(place: &Place, request: Request) -> anyhow::Result<Reply> {
    Ok(appliance::admin_call(&place.admin_socket(), request)?)
}

fn unexpected<T>() -> anyhow::Result<T> {
    bail!("the running lazaret gave an answer of another kind; is it of another version?")
}

/// Prints the token alone, so that scripts can take it.
pub(crate) fn token(place: &Place, args: &TokenArgs) -> anyhow::Result<()> {
    let request = v1::TokenRequest {
        uses_max: args.uses,
        valid_s: u32::try_from(args.valid.as_secs())?,
        pool: args.pool.clone().unwrap_or_default(),
        vm: args.vm.clone().unwrap_or_default(),
    };
    let Reply::Token(reply) = call(place, Request::Token(request))? else {
        return unexpected();
    };
    println!("{}", reply.token);
    Ok(())
}

pub(crate) fn status(place: &Place, output: &Output) -> anyhow::Result<()> {
    let Reply::Status(status) = call(place, Request::Status(v1::StatusRequest {}))? else {
        return unexpected();
    };
    if output.json {
        json::print(&json::status(&status))
    } else {
        print!("{}", show::status(&status));
        Ok(())
    }
}

pub(crate) fn detections(place: &Place, args: &DetectionsArgs) -> anyhow::Result<()> {
    let request = v1::DetectionsRequest { limit: args.limit };
    let Reply::Detections(reply) = call(place, Request::Detections(request))? else {
        return unexpected();
    };
    if args.output.json {
        json::print(&json::detections(&reply.detections))
    } else {
        print!("{}", show::detections(&reply.detections));
        Ok(())
    }
}

/// Page by page, up to the limit.
pub(crate) fn holders(place: &Place, args: &HoldersArgs) -> anyhow::Result<()> {
    let limit = usize::try_from(args.limit)?;
    let mut all = v1::HoldersReply {
        more: true,
        ..v1::HoldersReply::default()
    };
    while all.more && all.holders.len() < limit {
        let request = v1::HoldersRequest {
            blake3: args.digest.0.to_vec(),
            limit: u32::try_from(limit - all.holders.len())?,
            after: all
                .holders
                .last()
                .map_or_else(Vec::new, |last| last.guest_id.clone()),
        };
        let Reply::Holders(page) = call(place, Request::Holders(request))? else {
            return unexpected();
        };
        all.more = page.more && !page.holders.is_empty();
        all.holders.extend(page.holders);
    }
    if args.output.json {
        json::print(&json::holders(&args.digest, &all))
    } else {
        print!("{}", show::holders(&all));
        Ok(())
    }
}

pub(crate) fn quarantine(place: &Place, args: &QuarantineArgs) -> anyhow::Result<()> {
    let order = |action| order(place, args.guest, action);
    match &args.command {
        QuarantineCommand::List(output) => {
            let items = order(Action::List(v1::ListQuarantine {}))?.items;
            if output.json {
                return json::print(&json::items(&items));
            }
            print!("{}", show::items(&items));
        }
        QuarantineCommand::Restore {
            item,
            to,
            release,
            reason,
        } => {
            if *release {
                let items = order(Action::List(v1::ListQuarantine {}))?.items;
                let digest = digest_of(&items, *item)?;
                change_release(place, digest, Some(reason))?;
            }
            let path = to.as_ref().map_or_else(Vec::new, |path| {
                std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()).to_vec()
            });
            let item_id = item.0.to_vec();
            let result = order(Action::Restore(v1::RestoreItem { item_id, path }))?;
            println!("restored {item}{}", show::detail(&result.detail));
        }
        QuarantineCommand::Discard { item } => {
            let item_id = item.0.to_vec();
            let result = order(Action::Discard(v1::DiscardItem { item_id }))?;
            println!("discarded {item}{}", show::detail(&result.detail));
        }
    }
    Ok(())
}

fn digest_of(items: &[v1::QuarantineItem], item: ItemId) -> anyhow::Result<Digest> {
    let found = items.iter().find(|found| found.item_id == item.0);
    let found = found.with_context(|| format!("no item {item} in this guest's quarantine"))?;
    Digest::from_slice(&found.blake3).context("the guest does not say what the item holds")
}

/// Runs an order on a guest; anything but done is an error.
fn order(place: &Place, guest: Option<GuestId>, action: Action) -> anyhow::Result<v1::OrderResult> {
    let request = v1::GuestOrderRequest {
        guest_id: guest.map_or_else(Vec::new, |guest| guest.0.to_vec()),
        order: Some(v1::Order {
            order_id: Vec::new(),
            action: Some(action),
        }),
    };
    let Reply::OrderResult(result) = call(place, Request::GuestOrder(request))? else {
        return unexpected();
    };
    let status = result.status();
    ensure!(
        status == v1::OrderStatus::Done,
        "the guest says: {}{}",
        show::order_status(status),
        show::detail(&result.detail)
    );
    Ok(result)
}

pub(crate) fn release(place: &Place, args: &ReleaseArgs) -> anyhow::Result<()> {
    let reason = (!args.revoke).then(|| args.reason.clone().unwrap_or_default());
    change_release(place, args.digest, reason.as_deref())?;
    let done = if args.revoke {
        "no longer released"
    } else {
        "released"
    };
    println!("{}: {done}", args.digest);
    Ok(())
}

/// `None`: takes the release back.
fn change_release(place: &Place, digest: Digest, reason: Option<&str>) -> anyhow::Result<()> {
    let request = v1::ReleaseRequest {
        blake3: digest.0.to_vec(),
        revoke: reason.is_none(),
        reason: reason.unwrap_or_default().to_owned(),
    };
    match call(place, Request::Release(request))? {
        Reply::Release(_) => Ok(()),
        _ => unexpected(),
    }
}

pub(crate) fn reload(place: &Place) -> anyhow::Result<()> {
    let Reply::Reload(reply) = call(place, Request::Reload(v1::ReloadRequest {}))? else {
        return unexpected();
    };
    println!("reloaded; generation {}", show::hex(&reply.generation));
    Ok(())
}
