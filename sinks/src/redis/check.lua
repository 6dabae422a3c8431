-- KEYS: value, stream (or the value once more if it has none)
-- ARGV: 1 type of the value, 2 generation, 3 epoch, 4 seq ('' any), 5 when it expires (ms since 1970, '' never, 'gone' if
--       it has)
-- Gives: what stands (0 as it should be, 1 to be written again, 2 newer), its generation and epoch if newer, and the
--        stream's last seq (0 without one, -1 if something else is there).
local last = 0
if KEYS[2] ~= KEYS[1] then
  local kind = redis.call('TYPE', KEYS[2]).ok
  if kind == 'stream' then
    local info = redis.call('XINFO', 'STREAM', KEYS[2])
    for i = 1, #info, 2 do
      if info[i] == 'last-generated-id' then last = tonumber(string.match(info[i + 1], '^%d+')) end
    end
  elseif kind ~= 'none' then
    last = -1
  end
end
local kind = redis.call('TYPE', KEYS[1]).ok
if ARGV[5] == 'gone' then
  if kind ~= 'none' then redis.call('UNLINK', KEYS[1]) end
  return { 0, 0, 0, last }
end
if kind ~= ARGV[1] then return { 1, 0, 0, last } end
if kind == 'zset' then return { 0, 0, 0, last } end
local seq, e, g = string.match(redis.call('GET', KEYS[1]), '^{"seq":(%w+),"epoch":(%d+),"generation":(%d+)')
if not g then return { 1, 0, 0, last } end
local fg, fe, generation, epoch = tonumber(g), tonumber(e), tonumber(ARGV[2]), tonumber(ARGV[3])
if fg > generation or (fg == generation and fe > epoch) then return { 2, fg, fe, last } end
if ARGV[4] ~= '' and (fg ~= generation or fe ~= epoch or seq ~= ARGV[4]) then return { 1, 0, 0, last } end
if ARGV[4] == '' and fg ~= generation then return { 1, 0, 0, last } end
if ARGV[5] ~= '' then redis.call('PEXPIREAT', KEYS[1], ARGV[5]) end
return { 0, 0, 0, last }
