"""How pairs of a user's and an item's text become rows that a BertModel reads, and what it says at their [CLS].

A pair is [CLS] user [SEP] item [SEP]. `attention: both_ways`: every token sees every other. `one_way`: a user's tokens
see no item and no [CLS], so that whatever is asked about, they are the same and computed once; [CLS] and the item see
everything (after MacAvaney et al. 2020, arXiv 2004.14255, who let passages wait for queries).

B: users, C: candidates of each, P: pairs, L: tokens of a pair, U: of a user, T: of an item, S: of a packed row,
H: width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig

from compress.models.last_layer import only_at, picked
from compress.models.text_family import by_length

PACKED_TOKENS = 4096
"""Of packed rows that are computed at once, at most, but for a row alone."""


def reads_one_way(config: BertConfig) -> bool:
    """Of a model that was built before there was a choice: both ways."""
    return bool(config.recommender.get("attention", "both_ways") == "one_way")


def joined(user_PU: Tensor, items_PT: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and token types of pairs, (P, L) each: a user's tokens, an item's right behind them, then padding."""
    lengths_P1 = (user_PU != pad).sum(dim=1, keepdim=True)
    columns_L = torch.arange(user_PU.shape[1] + items_PT.shape[1], device=user_PU.device)
    places_PL = columns_L - lengths_P1  # among the item's tokens
    tokens_PL = items_PT.gather(1, places_PL.clamp(0, items_PT.shape[1] - 1))
    tokens_PL = tokens_PL.masked_fill(places_PL >= items_PT.shape[1], pad)
    of_user_PL = places_PL < 0
    wide_PL = nn.functional.pad(user_PU, (0, items_PT.shape[1]), value=pad)
    return torch.where(of_user_PL, wide_PL, tokens_PL), (~of_user_PL).long()


def visible(config: BertConfig, real_PL: Tensor, types_PL: Tensor) -> Tensor:
    """The attention mask of pairs: (P, L), or (P, 1, L, L) where it matters who looks.

    Args: real_PL: 1 where a token is.
    """
    if not reads_one_way(config):
        return real_PL
    shared_PL = types_PL == 0
    shared_PL[:, 0] = False  # [CLS] is each pair's own
    return _sees(shared_PL[:, :, None] <= shared_PL[:, None, :], real_PL)


def plain_states(model: Any, ids_PL: Tensor, types_PL: Tensor) -> Tensor:
    """What the last layer says at each pair's [CLS], (P, H), all positions of all layers computed."""

    def states(rows: Tensor, real: Tensor, length: int) -> Tensor:
        types = types_PL[rows, :length]
        encoded: Tensor = model.bert(ids_PL[rows, :length], visible(model.config, real, types), types).last_hidden_state
        return encoded[:, 0]

    return by_length(ids_PL, model.config.pad_token_id, states)


def cls_states(model: Any, user_BU: Tensor, items_BCT: Tensor) -> Tensor:
    """The same of each user with each of its candidates, (B * C, H), without what no [CLS] reads."""
    if reads_one_way(model.config):
        return _packed_states(model, user_BU, items_BCT)
    user_PU = user_BU.repeat_interleave(items_BCT.shape[1], dim=0)
    ids_PL, types_PL = joined(user_PU, items_BCT.flatten(0, 1), model.config.pad_token_id)

    def states(rows: Tensor, real: Tensor, length: int) -> Tensor:
        with only_at(model.bert, torch.zeros(len(rows), 1, dtype=torch.long, device=rows.device)):
            encoded: Tensor = model.bert(ids_PL[rows, :length], real, types_PL[rows, :length]).last_hidden_state
        return encoded[:, 0]

    return by_length(ids_PL, model.config.pad_token_id, states)


def _packed_states(model: Any, user_BU: Tensor, items_BCT: Tensor) -> Tensor:
    """A row a user: its tokens once, then [CLS] and the item of each candidate, with the positions that pairs have."""
    count = items_BCT.shape[1]
    rows = _pack(user_BU, items_BCT, model.config.pad_token_id)
    at_once = max(1, PACKED_TOKENS // max(1, rows[0].shape[1]))
    found = []
    for ids_BS, places_BS, types_BS, owner_BS in zip(*(torch.split(each, at_once) for each in rows), strict=True):
        sees = (owner_BS[:, None, :] == 0) | (owner_BS[:, None, :] == owner_BS[:, :, None])
        mask = _sees(sees, ids_BS != model.config.pad_token_id)
        cls_BC = ((places_BS == 0) & (owner_BS > 0)).nonzero()[:, 1].view(-1, count)
        with only_at(model.bert, cls_BC):
            encoded_BSH = model.bert(ids_BS, mask, types_BS, places_BS).last_hidden_state
        found.append(picked(encoded_BSH, cls_BC).flatten(0, 1))
    return torch.cat(found)


def _pack(user_BU: Tensor, items_BCT: Tensor, pad: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Token ids, positions, token types and owners (0: the user, c: candidate c), (B, S) each, padding at the end."""
    batch, count, _ = items_BCT.shape
    cls_BC1 = user_BU[:, :1].unsqueeze(1).expand(-1, count, -1)
    own_BCS = torch.cat([cls_BC1, items_BCT], dim=2)
    columns = torch.arange(own_BCS.shape[2], device=user_BU.device)
    lengths_B = (user_BU != pad).sum(dim=1)
    places_BCS = torch.where(columns > 0, columns - 1 + lengths_B[:, None, None], 0).expand(-1, count, -1)
    types_BCS = (columns > 0).long().expand(batch, count, -1)
    owners_BCS = torch.arange(1, count + 1, device=user_BU.device)[None, :, None].expand_as(own_BCS)
    user_places_BU = torch.arange(1, user_BU.shape[1], device=user_BU.device).expand(batch, -1)
    of_user, of_candidates = (
        (user_BU[:, 1:], user_places_BU, torch.zeros_like(user_places_BU), torch.zeros_like(user_places_BU)),
        (own_BCS, places_BCS, types_BCS, owners_BCS),
    )
    wide = [torch.cat([mine, own.flatten(1)], dim=1) for mine, own in zip(of_user, of_candidates, strict=True)]
    real_BS = wide[0] != pad
    order_BS = (~real_BS).long().argsort(dim=1, stable=True)[:, : int(real_BS.sum(dim=1).max())]
    ids, places, types, owners = (each.gather(1, order_BS) for each in wide)
    # Positions of padding stay within what a model knows.
    return ids, places.masked_fill(ids == pad, 0), types, owners.masked_fill(ids == pad, 0)


def _sees(sees_NLL: Tensor, real_NL: Tensor) -> Tensor:
    """Whether a position, second to last, sees another, last; padding is seen by nobody: (N, 1, L, L)."""
    return (sees_NLL & real_NL.bool()[:, None, :]).unsqueeze(1)
