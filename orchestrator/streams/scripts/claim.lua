-- Take over entries whose consumer has been silent for too long, within the budgets.
--
-- KEYS: streams.
-- ARGV: group, consumer, number of budgets, each budget, then for each stream the number of its budget,
--       then idle milliseconds, the most deliveries of one entry, and for each stream the cursor of its scan.
-- Reply: {"<stream number> <id> <kind><value>", ...}, "<cursor> <cursor> ..."
--   kind: as in take.lua, and ! for an entry that was delivered too often.
local group, consumer, budgets = ARGV[1], ARGV[2], tonumber(ARGV[3])
local left = {}
for b = 1, budgets do left[b] = tonumber(ARGV[3 + b]) end
local base = 3 + budgets + #KEYS
local idle, most = ARGV[base + 1], tonumber(ARGV[base + 2])

local function entry_of(key, id)
  -- Without JUSTID: this is a delivery, and it counts.
  local reply = redis.call('XCLAIM', key, group, consumer, 0, id)
  local entry = reply[1]
  if not entry then
    redis.call('XACK', key, group, id)  -- deleted while pending: nothing is left to deliver
    return nil
  end
  local pending = redis.call('XPENDING', key, group, id, id, 1)[1]
  local fields, kind, value = entry[2], '?', ''
  if pending and pending[4] > most then
    kind = '!'
  elseif #fields == 2 and (fields[1] == 'm' or fields[1] == 'j') then
    kind, value = fields[1], fields[2]
  end
  return kind .. value
end

local taken, cursors = {}, {}
for k, key in ipairs(KEYS) do
  local b = tonumber(ARGV[3 + budgets + k])
  cursors[k] = ARGV[base + 2 + k]
  if left[b] > 0 and redis.call('XLEN', key) > 0 then
    -- JUSTID: on Redis 6.2 the other form answers nil for a deleted entry, without its id.
    local reply = redis.pcall('XAUTOCLAIM', key, group, consumer, idle, cursors[k], 'COUNT', left[b], 'JUSTID')
    if reply.err then
      cursors[k] = '0-0'
    else
      cursors[k] = reply[1]
      for _, id in ipairs(reply[2]) do
        local value = entry_of(key, id)
        if value then
          taken[#taken + 1] = k .. ' ' .. id .. ' ' .. value
          left[b] = left[b] - 1
        end
      end
    end
  end
end
return {taken, table.concat(cursors, ' ')}
